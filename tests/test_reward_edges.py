"""Rewards do not depend on batch, padding, order or siblings; odd users and data are handled as documented."""

import dataclasses
from collections import Counter

import pytest
import tiny
from test_reward_evaluation import write

from data_pipelines.preferences.files import Origin, named_preferences
from rlhi_jax.config import base_config
from rlhi_jax.data.rows import Capacities
from rlhi_jax.evaluate import evaluate_reward
from rlhi_jax.io.errors import NothingToEvaluate, UserError
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer

REPLIES = ['They purr.', 'No.', 'Cats sleep most of the day.', 'Milk, and a warm place.', 'Ask one.']
PROMPT = [dict(role=('user', 'assistant')[n % 2], content=f'Tell me of cats, part {n}.') for n in range(3)]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    spec = dataclasses.replace(tiny.SPEC, head='reward')
    return str(tiny.write_model(tmp_path_factory.mktemp('reward') / 'model', spec=spec, seed=3))


def settings():
    c = base_config()
    c.model.dtype, c.model.logprob_chunk, c.rows.tokens, c.rows.scored = 'float32', 64, 512, 256
    return c


def rewards(model: str, items: list[Candidates], *, rows: int = 8, tokens: int = 512) -> dict[str, float]:
    """The reward of each reply of each item, keyed by item and text."""
    c = settings()
    c.eval.batch_rows = rows
    scorer = CandidateScorer(c, model, Capacities(tokens, 256, 8), sees_persona=True)
    scores = scorer(items)
    return {
        f'{item.id} {text}': score for item in items for text, score in zip(item.replies, scores[item.id], strict=True)
    }


def test_rewards_depend_on_nothing_but_prompt_persona_and_reply(model):
    item = Candidates('a', PROMPT, 'I like cats.', REPLIES)
    expected = rewards(model, [item])
    assert len({round(value, 4) for value in expected.values()}) == len(REPLIES)
    others = [
        Candidates(f'x{n}', [dict(role='user', content='Dogs? ' * (n + 1))], '', ['Woof.', 'No.']) for n in range(9)
    ]
    changed = {
        'order': rewards(model, [item._replace(replies=REPLIES[::-1])]),
        'siblings': rewards(model, [item._replace(replies=REPLIES[:2])])
        | rewards(model, [item._replace(replies=REPLIES[2:])]),
        'batch': rewards(model, [*others[:4], item, *others[4:]], rows=16),
        'padding': rewards(model, [item], tokens=768),
    }
    for name, found in changed.items():
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=1e-5), name
    stranger = rewards(model, [item._replace(persona='I like dogs.')])
    assert max(abs(stranger[key] - expected[key]) for key in expected) > 1e-3


def test_personas_that_do_not_fit_and_histories_that_are_empty(model, tmp_path):
    """A pair whose persona leaves no room is left out; a user without history is scored without a persona."""
    records = tiny.preferences(6, seed=1)
    for record in records:
        record['persona'] = ''
    empty = evaluate_reward(settings(), model, write(tmp_path / 'empty.jsonl', records), 'validation')
    assert list(empty['conditions']) == ['empty'] and empty['pairs'] == len(records)
    for number, record in enumerate(records):
        record.update(user_id=f'u{number}', persona=f'I like tea {number}. ' * (60 if number == 0 else 1))
    mixed = evaluate_reward(settings(), model, write(tmp_path / 'mixed.jsonl', records), 'validation')
    # Without the user of the long persona, and the user who gets it under 'other'.
    assert mixed['pairs'] == len(records) - 2 and 'own' in mixed['conditions']
    with pytest.raises(NothingToEvaluate, match='no pair fits in a row of 512 tokens'):
        evaluate_reward(settings(), model, write(tmp_path / 'long.jsonl', records[:1]), 'validation')


def test_data_of_ties_alone_are_refused_or_kept(tmp_path):
    records = [record | dict(score_chosen=1, score_rejected=1) for record in tiny.preferences(4)]
    path = write(tmp_path / 'ties.jsonl', records)
    with pytest.raises(UserError, match=f"--pairs=.* contains no usable preferences .*'dropped_tie': {len(records)}"):
        named_preferences(path, 'train', Counter(), Origin('--pairs', '--split'))
