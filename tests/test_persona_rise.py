"""The policy as the judge of candidate replies: scores against single likelihoods, and the choice of strangers."""

import pytest
import tiny

from data_pipelines import candidates
from data_pipelines.core.inputs import read_records
from data_pipelines.core.record_files import write_records
from data_pipelines.preferences.persona_rise import persona_pool, strangers_personas
from rlhi_jax.config import base_config
from rlhi_jax.config.loop_paths import method_of
from rlhi_jax.data.rows import capacities
from rlhi_jax.io.files import read_json
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer

WISHES = 'I like short answers.', 'I like long answers.', 'I like lists.', '', 'I like lists.'
PERSONAS = dict(zip('abcde', WISHES, strict=True))


def prompt(user: str, number: int = 0) -> dict:
    messages = [dict(role='user', content=f'Why {number}?')]
    return dict(id=f'{user}/{number}', user_id=user, persona=PERSONAS[user], split='train', messages=messages)


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
    """Candidates of a tiny policy, scored by the policy."""
    folder = tmp_path_factory.mktemp('judge')
    tiny.write_model(folder / 'model')
    write_records(folder / 'prompts.jsonl', [prompt(user, number) for user in PERSONAS for number in range(2)])
    c = base_config()
    c.model.path, c.model.dtype, c.model.logprob_chunk = str(folder / 'model'), 'float32', 64
    c.data.prompts, c.data.candidates = str(folder / 'prompts.jsonl'), str(folder / 'candidates')
    c.candidates.scorer, c.candidates.strangers, c.candidates.samples = 'policy', 2, 3
    c.sampler.new_tokens, c.sampler.prompt_tokens, c.sampler.slots = 12, 64, 8
    c.rows.tokens, c.rows.scored = 192, 128
    candidates.STAGE.run(c)
    return c, {record['id']: record for record in read_records(c, 'candidates')}


def test_scores_are_rises_over_strangers(scored):
    c, records = scored
    pool = persona_pool(prompt(user) for user in PERSONAS)
    scorer = CandidateScorer(c, c.model.path, capacities(c), sees_persona=True)
    assert len(records) > 4
    for name, record in records.items():
        replies = [reply['text'] for reply in record['replies']]
        others = strangers_personas(record, pool, 2)
        assert others and record['persona'] not in others and '' not in others
        under = {
            persona: scorer([Candidates(name, record['messages'], persona, replies)])[name]
            for persona in (record['persona'], *others)
        }
        for number, score in enumerate(record['scores']):
            strangers = [under[persona][number] for persona in others]
            assert score == pytest.approx(under[record['persona']][number] - sum(strangers) / len(strangers), abs=1e-4)
    assert max(abs(score) for record in records.values() for score in record['scores']) > 1e-3


def test_prompts_without_a_persona_are_counted(scored):
    c, records = scored
    counts = read_json(f'{c.data.candidates}/manifest.json', '', fields=())['counts']
    assert counts['dropped_no_persona'] == 2 and not [name for name in records if name.startswith('d/')]


def test_strangers_want_something_else():
    pool = persona_pool(prompt(user) for user in [*PERSONAS, *PERSONAS])
    assert sorted(pool) == [(user, persona) for user, persona in PERSONAS.items() if persona]
    assert set(strangers_personas(prompt('a'), pool, 9)) == {'I like long answers.', 'I like lists.'}
    assert set(strangers_personas(prompt('c'), pool, 9)) == {'I like long answers.', 'I like short answers.'}
    assert strangers_personas(prompt('a'), pool[:1] if pool[0][0] == 'a' else [('a', PERSONAS['a'])], 9) == []


def test_the_loop_trains_no_reward_model_for_this_judge():
    c = base_config()
    assert method_of(c).trains == ('reward', 'dpo')
    c.candidates.scorer = 'policy'
    assert method_of(c).trains == ('dpo',) and method_of(c).sources == 'rewrites,candidates'
