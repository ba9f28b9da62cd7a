"""Each user turn after a reply → what it is: a re-attempt with feedback, a new request, or positive feedback.

    python -m data_pipelines.follow_ups --config=configs/NAME.py

The one that drives rewrites and personas is `reattempt_with_feedback`: such a turn is `mined`. The teacher is not asked
for a label: it is shown what users of each kind say, and the kind under which it finds the turn likeliest
wins (a noisy channel, arXiv 2108.04106, which suits small models). Its prompts hold no part of the conversation, so one
tree a kind scores many turns, and the prompt is computed once.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.generation import likelihoods, model_identity
from data_pipelines.prompts import prompt_digest, render_turns
from data_pipelines.stage import Record, Stage, input_digest, read_records
from rlhi_jax.config import likelihood_path
from rlhi_jax.rewards import Candidates

FEEDBACK = 'reattempt_with_feedback'
LABELS = (FEEDBACK, 'new_request', 'positive_feedback')
MAX_CHARACTERS = 300  # of a turn that are looked at
TURNS = 32  # of one tree


def follow_up_turns(talk: Record) -> list[tuple[int, str, str, str]]:
    """A conversation's user turns after a reply: (place, request, reply, follow-up)."""
    said = [message['content'] for message in talk['messages']]
    return [(place, *said[place - 2 : place + 1]) for place in range(2, len(said), 2)]


def label_scores(config: ConfigDict, folder: Path, turns: list[str]) -> dict[str, list[float | None]]:
    """log p(turn | label) of every turn by label, in nats."""
    openings = [turn[:MAX_CHARACTERS] for turn in turns]
    texts = list(dict.fromkeys(openings))
    questions = [
        Candidates(
            f'{label} {start}',
            [dict(role=role, content=content) for role, content in render_turns('follow_up', label=label)],
            '',
            texts[start : start + TURNS],
        )
        for label in LABELS
        for start in range(0, len(texts), TURNS)
    ]
    scores = likelihoods(config, folder, _identity(config), questions)
    blocks = range(0, len(texts), TURNS)
    found = {}
    for label in LABELS:
        by_text = dict(zip(texts, (score for start in blocks for score in scores[f'{label} {start}']), strict=True))
        found[label] = [by_text[opening] for opening in openings]
    return found


def _identity(config: ConfigDict) -> dict[str, Any]:
    return dict(
        conversations=input_digest(config, 'conversations'),
        teacher=model_identity(config, likelihood_path(config)),
        prompt=prompt_digest('follow_up'),
        row_tokens=config.teacher.row_tokens,
    )


def _work(config: ConfigDict, folder: Path) -> dict[str, int]:
    turns = [
        (talk, place, said) for talk in read_records(config, 'conversations') for place, *said in follow_up_turns(talk)
    ]
    scores = label_scores(config, folder, [said[-1] for _, _, said in turns])
    counts: Counter = Counter(turns_read=len(turns))
    records = []
    for number, (talk, place, (request, reply, follow_up)) in enumerate(turns):
        own = {label: scores[label][number] for label in LABELS}
        if None in own.values():
            counts['dropped_longer_than_a_row'] += 1
            continue
        label = max(own, key=own.get)
        counts[f'kept_{label}'] += 1
        kept = dict(id=f'{talk["id"]}/{place}', conversation=talk['id'], place=place)
        kept |= dict(user_id=talk['user_id'], split=talk['split'], label=label, mined=label == FEEDBACK, scores=own)
        records.append(kept | dict(request=request, reply=reply, follow_up=follow_up))
    return STAGE.write(config, folder, records, counts)


STAGE = Stage('follow_ups', _work, 'data.follow_ups', _identity)

if __name__ == '__main__':
    STAGE.main()
