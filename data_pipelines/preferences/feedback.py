"""Finds the replies that users liked or disliked, judging by the users' next turns."""

from collections import Counter
from collections.abc import Iterator

from ml_collections import ConfigDict

from data_pipelines.core.histories import follow_ups_with_personas
from data_pipelines.core.records import MINED_SPLITS, Message, RatedReply
from data_pipelines.core.turns import REACTION, pair_id, request_index
from data_pipelines.labelling.labels import LIKED


def from_feedback(config: ConfigDict, counts: Counter) -> Iterator[RatedReply]:
    """Yield each reply that its user liked or disliked.

    The label of the user's next turn decides. The reply was disliked if that turn is labelled
    `reattempt_with_feedback`, and liked if it is labelled `positive_feedback`. Either label needs a confidence of at
    least `config.follow_ups.min_confidence`. Replies that cannot be used are skipped and counted by reason.
    """
    for conversation, turn, persona in follow_ups_with_personas(config):
        counts['feedback_read'] += 1
        liked = turn['label'] == LIKED and turn['confidence'] >= config.follow_ups.min_confidence
        if turn['split'] not in MINED_SPLITS:
            counts['dropped_test_split'] += 1
        elif not turn['mined'] and not liked:
            counts['dropped_no_feedback'] += 1
        elif persona is None:
            counts['dropped_persona_would_know_it'] += 1
        else:
            yield RatedReply(
                id=pair_id(turn['id'], REACTION),
                conversation=conversation['id'],
                split=turn['split'],
                user_id=turn['user_id'],
                persona=persona,
                prompt=conversation['messages'][: request_index(turn['turn_index']) + 1],
                completion=[Message(role='assistant', content=turn['reply'])],
                label=liked,
                follow_up=turn['follow_up'],
            )
