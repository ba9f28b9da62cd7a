"""Finds the replies that users liked or disliked, judging by the users' next turns."""

from collections import Counter
from collections.abc import Iterator

from ml_collections import ConfigDict

from data_pipelines.core.histories import side_by_side
from data_pipelines.core.inputs import input_folder
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import MINED_SPLITS, Message, RatedReply
from data_pipelines.core.turns import REACTION, pair_id, request_index, turn_id
from data_pipelines.labelling.labels import LIKED


def from_feedback(config: ConfigDict, counts: Counter) -> Iterator[RatedReply]:
    """Yield each reply that its user liked or disliked.

    A reply was disliked if the user's next turn is mined feedback, and liked if it is positive feedback. Positive
    feedback needs the same minimum confidence as mined feedback, `config.follow_ups.min_confidence`. Other turns are
    skipped and counted by reason.
    """
    folders = [input_folder(config, key) / RECORDS for key in ('follow_ups', 'personas')]
    for conversation, (follow_ups, turn_personas) in side_by_side(config, *folders):
        personas = {turn['id']: turn['persona'] for turn in turn_personas}
        for turn in follow_ups:
            counts['feedback_read'] += 1
            request_at = request_index(turn['turn_index'])
            request = turn_id(conversation['id'], request_at)
            liked = turn['label'] == LIKED and turn['confidence'] >= config.follow_ups.min_confidence
            if turn['split'] not in MINED_SPLITS:
                counts['dropped_test_split'] += 1
            elif not turn['mined'] and not liked:
                counts['dropped_no_feedback'] += 1
            elif request not in personas:
                counts['dropped_persona_would_know_it'] += 1
            else:
                yield RatedReply(
                    id=pair_id(turn['id'], REACTION),
                    conversation=conversation['id'],
                    split=turn['split'],
                    user_id=turn['user_id'],
                    persona=personas[request],
                    prompt=conversation['messages'][: request_at + 1],
                    completion=[Message(role='assistant', content=turn['reply'])],
                    label=liked,
                    follow_up=turn['follow_up'],
                )
