"""Each user turn after a reply → what it is: feedback on the reply, a new request, or approval.

    python -m data_pipelines.follow_ups --config=configs/NAME.py

The paper's classes are finer; the one that drives rewrites, "re-attempt with feedback", is `feedback` here. The teacher
is asked once a turn, and the label whose sentence it finds likeliest wins, measured against how likely it finds that
sentence when it is shown no turn at all (contextual calibration, arXiv 2102.09690).
"""

from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.generation import likelihoods
from data_pipelines.prompts import prompt_digest, render
from data_pipelines.stage import Record, Stage, input_digest, read_records
from rlhi_jax.checkpoints import open_model
from rlhi_jax.config import teacher_path
from rlhi_jax.rewards import Candidates

LABELS = {
    'feedback': 'The user is not satisfied and wants a better answer.',
    'new_request': 'The user asks for something new.',
    'approval': 'The user is satisfied and thanks the assistant.',
}


def follow_up_turns(talk: Record) -> list[tuple[int, str, str, str]]:
    """A conversation's user turns after a reply: (place, request, reply, follow-up)."""
    said = [message['content'] for message in talk['messages']]
    return [(place, *said[place - 2 : place + 1]) for place in range(2, len(said), 2)]


def _question(name: str, request: str, reply: str, follow_up: str) -> Candidates:
    text = render('follow_up', request=request, reply=reply, follow_up=follow_up)
    return Candidates(name, [dict(role='user', content=text)], '', list(LABELS.values()))


def _identity(config: ConfigDict) -> dict[str, Any]:
    return dict(
        conversations=input_digest(config, 'conversations'),
        teacher=open_model(teacher_path(config)).weights,
        prompt=prompt_digest('follow_up'),
        labels=LABELS,
    )


def _work(config: ConfigDict, folder: Path) -> dict[str, int]:
    turns = {
        f'{talk["id"]}/{place}': (talk, place, said)
        for talk in read_records(config, 'conversations')
        for place, *said in follow_up_turns(talk)
    }
    questions = [_question('nothing', 'N/A', 'N/A', 'N/A')]
    questions += [_question(name, *said) for name, (_, _, said) in turns.items()]
    scores = likelihoods(config, folder, _identity(config), questions)
    prior = dict(zip(LABELS, scores.pop('nothing'), strict=True))
    counts: Counter = Counter(turns_read=len(turns))
    records = []
    for name, (talk, place, (request, reply, follow_up)) in turns.items():
        if None in scores[name]:
            counts['dropped_longer_than_a_row'] += 1
            continue
        gains = {label: score - prior[label] for label, score in zip(LABELS, scores[name], strict=True)}
        label = max(gains, key=gains.get)
        counts[f'kept_{label}'] += 1
        kept = dict(id=name, conversation=talk['id'], place=place, user_id=talk['user_id'], split=talk['split'])
        records.append(kept | dict(label=label, request=request, reply=reply, follow_up=follow_up, gains=gains))
    return STAGE.write(config, folder, records, counts)


STAGE = Stage('follow_ups', _work, 'data.follow_ups', _identity)

if __name__ == '__main__':
    STAGE.main()
