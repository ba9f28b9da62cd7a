"""Check the examples in docs/extending.md: the diffs apply and touch few files, and the additions work."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import tiny

PAGE = (tiny.ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8')
SECTIONS = dict(re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', PAGE, re.MULTILINE | re.DOTALL))
MOST_FILES = {'Objective': 2, 'DPO variant': 1, 'Persona scope': 1, 'Preference source': 1, 'Stage': 3}
CHECKS = {
    'Objective': """
        import jax.numpy as jnp
        from rlhi_jax.objectives import OBJECTIVES, PairScores
        scores = PairScores(logp_P2=jnp.array([[-4.0, -9.0]]), length_P2=jnp.array([[2.0, 3.0]]))
        loss_P, metrics = OBJECTIVES['cpo'].loss(scores, None)
        assert abs(float(loss_P[0]) - (math.log1p(math.exp(-0.5)) + 2.0)) < 1e-6 and float(metrics['accuracy'][0]) == 1
    """,
    'DPO variant': """
        import jax.numpy as jnp
        from rlhi_jax.objectives.dpo import VARIANTS
        gap_P = jnp.array([-2.0, 0.3, 5.0])
        loss_P = VARIANTS['truncated'].loss(gap_P, beta=0.5, label_smoothing=0.0)
        assert jnp.allclose(loss_P, jnp.array([4.0, 0.7225, 0.0]), atol=1e-6)
    """,
    'Persona scope': """
        from rlhi_jax.config import base_config
        from data_pipelines.persona.scopes import states_at_turns
        settings = base_config().personas
        settings.scope = 'previous_conversation'
        messages = [dict(role='user', content='x'), dict(role='assistant', content='y')]
        conversations = [dict(id=f'c{n}', user_id='u', began=f'{n}', ended=f'{n}', messages=messages) for n in range(3)]
        claims = [dict(id=f'c{n}/2', user_id='u', conversation=f'c{n}', turn_index=2, said_at=f'{n}', text=text)
                  for n, text in enumerate(['I like lists.', 'I like short answers.'])]
        states = dict(states_at_turns(conversations, claims, settings))
        known = {turn: [claim['text'] for claim in state] for turn, state in states.items()}
        assert known == {'c0/0': [], 'c1/0': ['I like lists.'], 'c2/0': ['I like short answers.']}, known
    """,
    'Preference source': """
        lines = [dict(question='Why?', better='So.', worse='No.', rater=f'r{n}') for n in range(20)]
        pathlib.Path('answers.jsonl').write_text('\\n'.join(map(json.dumps, [*lines, 'none'])))
        program = [sys.executable, '-m', 'data_pipelines.sources.better_worse', '--answers=answers.jsonl', '--to=pairs']
        subprocess.run(program, check=True)
        counts = json.loads(pathlib.Path('pairs/manifest.json').read_text())['counts']
        assert counts['train'] + counts['validation'] == 20 and counts['dropped_not_an_answer'] == 1
        shards = ['data_pipelines.shards', '--config=tests/tiny_config.py', '--config.data.pairs=pairs/train.jsonl']
        subprocess.run([sys.executable, '-m', *shards, '--config.data.shards=shards'], check=True)
    """,
    'Stage': """
        config = golden.ingest_config(pathlib.Path.cwd())
        config.data.openers, config.data.card = 'openers', 'card'
        for name in ('ingest', 'openers', 'card'):
            stage_named(name).run(config)
        card = json.loads(pathlib.Path('card/card.json').read_text())
        (step,) = card['funnel']['openers']['steps']
        assert step['adds_up'] and step['read'] > 0 and card['made_of']['openers'] == ['conversations']
        before = [json.loads(line) for line in open('openers/records.jsonl')]
        config.ingest.opt_out = 'opted_out.txt'
        forget.forget(config, frozenset(['ann']), None)
        after = [json.loads(line) for line in open('openers/records.jsonl')]
        assert after == [record for record in before if record['user_id'] != 'ann'] != before
    """,
    'Raw format': """
        turns = [dict(by='client', text='Why do bees dance?'), dict(by='agent', text='To show the way.')]
        pathlib.Path('chats.jsonl').write_text(json.dumps(dict(chat=dict(key=7, turns=turns), client='c1')))
        c = base_config()
        c.data.raw, c.data.conversations = 'chats.jsonl', 'conversations'
        exec(SETTINGS)
        stage_named('ingest').run(c)
        (record,) = map(json.loads, open('conversations/records.jsonl'))
        assert (record['id'], record['user_id'], len(record['messages'])) == ('7', 'c1', 2)
    """,
}
PREAMBLE = """
import json, math, pathlib, subprocess, sys
import golden
from data_pipelines import forget
from data_pipelines.core.registry import stage_named
from rlhi_jax.config import base_config
SETTINGS = {settings!r}
"""


def diff_of(section: str) -> str:
    return ''.join(re.findall(r'```diff\n(.*?)```', SECTIONS[section], re.DOTALL))


@pytest.fixture(scope='module')
def extended(tmp_path_factory):
    """A copy of the repository with every diff on the page applied."""
    copy = tmp_path_factory.mktemp('extended')
    ignored = shutil.ignore_patterns('__pycache__', 'benchmarks', 'labels')
    for folder in ('rlhi_jax', 'data_pipelines', 'tests'):
        shutil.copytree(tiny.ROOT / folder, copy / folder, ignore=ignored)
    for section in MOST_FILES:
        subprocess.run(['git', 'apply', '-'], input=diff_of(section), cwd=copy, text=True, check=True)
    return copy


@pytest.mark.parametrize('section', MOST_FILES)
def test_an_extension_touches_few_files(section):
    assert 0 < diff_of(section).count('diff --git') <= MOST_FILES[section]


def test_every_section_is_checked():
    assert SECTIONS.keys() == CHECKS.keys()


@pytest.mark.parametrize('section', CHECKS)
def test_what_an_extension_adds_works(extended, tmp_path, section):
    settings = ''.join(re.findall(r'```python\n(.*?)```', SECTIONS[section], re.DOTALL))
    indented = CHECKS[section].splitlines()
    check = '\n'.join(line.removeprefix(' ' * 8) for line in indented)
    (tmp_path / 'tests').symlink_to(extended / 'tests')
    environment = os.environ | dict(PYTHONPATH=f'{extended}:{extended / "tests"}', JAX_PLATFORMS='cpu')
    command = [sys.executable, '-c', PREAMBLE.format(settings=settings) + check]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lists_of_the_extended_copy_know_the_additions(extended):
    """The config checks read the registries, so they accept additions without being edited."""
    code = """
import golden
from rlhi_jax.objectives import OBJECTIVES
from data_pipelines.persona.scopes import SCOPES
assert 'cpo' in OBJECTIVES and 'previous_conversation' in SCOPES and 'openers' in golden.stages()
from rlhi_jax.cli.program import load_config
from rlhi_jax.config import base_config
config = base_config()
config.objective, config.dpo.variant, config.personas.scope = 'cpo', 'truncated', 'previous_conversation'
load_config(config)
"""
    environment = os.environ | dict(PYTHONPATH=f'{extended}:{extended / "tests"}', JAX_PLATFORMS='cpu')
    done = subprocess.run([sys.executable, '-c', code], cwd=extended, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
