"""Every experiment's config is valid in each of its variants, and its docstring names them."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import tiny

from data_pipelines.core.record_files import write_records
from rlhi_jax.config import check_config
from rlhi_jax.config.loop_paths import stage_config, with_paths
from rlhi_jax.io.errors import UserError
from rlhi_jax.loop import Round
from rlhi_jax.models.checkpoints import saved_steps

CONFIGS = sorted((tiny.ROOT / 'configs').glob('*.py'))
ARMS = {
    'evidence': (
        *('counterfactual', 'from_base', 'offline', 'online', 'rewrites', 'retries'),
        *('pooled', 'shuffled', 'all_users', 'few_users'),
    ),
    'feasibility': ('oracle', 'inferred', 'complaints'),
    'mt_bench': ('dpo', 'reward'),
    'rlhi_llama31_8b': ('rewrites', 'rewards', 'online'),
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(path: Path) -> list[str]:
    return [variant for arm in ARMS.get(path.stem, ('',)) for variant in (arm, f'{arm},smoke'.lstrip(','))]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_variant_is_valid(path):
    get_config = load(path).get_config
    configs = [check_config(get_config(variant)) for variant in variants(path)]
    assert len({str(config) for config in configs}) == len(configs), 'two variants are the same'
    assert str(get_config()) == str(configs[0]), 'the first variant is not the default'
    with pytest.raises(UserError, match="'tiny' is unknown"):
        get_config('tiny')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_docstring_is_complete(path):
    text = load(path).__doc__
    assert [part for part in ('\nResult', '\nHardware and time: ', '\nCommand') if part not in text] == []
    arms = ARMS.get(path.stem, ())
    named = [f'--config=configs/{path.name}:{arm}' for arm in arms] or [f'--config=configs/{path.name}']
    assert [flag for flag in named if flag not in text] == []
    assert 'smoke' in text


def test_simulated_users_talk_unless_their_conversations_are_given(tmp_path):
    """The demo starts from recorded conversations, and its users state their tastes; other rounds infer them."""
    recorded = check_config(load(tiny.ROOT / 'configs' / 'demo.py').get_config())
    names = [part.name for part in Round(recorded, tmp_path).parts()]
    assert names[0] == 'ingest' and {'satisfaction before', 'satisfaction after'} < set(names)
    assert (tiny.ROOT / with_paths(recorded, tmp_path).data.raw / 'prompts.jsonl').exists()
    assert stage_config(recorded, tmp_path, 'satisfaction').data.personas == ''
    talking = check_config(load(tiny.ROOT / 'configs' / 'feasibility.py').get_config('inferred'))
    assert Round(talking, tmp_path).parts()[0].name == 'sources.simulated'
    assert with_paths(talking, tmp_path).data.raw == str(tmp_path / 'raw')
    assert stage_config(talking, tmp_path, 'satisfaction').data.personas == str(tmp_path / 'personas')


@pytest.fixture(scope='module')
def material(tmp_path_factory) -> Path:
    """A tiny model, preferences, and requests of their users."""
    folder = tmp_path_factory.mktemp('material')
    tiny.write_model(folder / 'model', spec=tiny.LOOP_SPEC)
    tiny.write_preferences(folder / 'pairs.jsonl', 8)
    wishes = ('I like short answers.', 'I like long answers with examples.')
    prompts = [
        dict(
            id=f'{n}',
            user_id=f'{n % 2}',
            persona=wishes[n % 2],
            split='train',
            messages=[{'role': 'user', 'content': 'Why?'}],
        )
        for n in range(4)
    ]
    write_records(folder / 'prompts.jsonl', prompts)
    return folder


SMOKE = [(path, variant) for path in CONFIGS for variant in variants(path) if variant.endswith('smoke')]


@pytest.mark.parametrize(('path', 'variant'), SMOKE, ids=[f'{path.stem}:{variant}' for path, variant in SMOKE])
def test_every_smoke_variant_takes_a_step(material, path, variant, tmp_path):
    """Each config's sizes, objective and optimizer, with a model and data that are tiny."""
    c = load(path).get_config(variant)
    settings = {
        'model.path': material / 'model',
        'data.pairs': material / 'pairs.jsonl',
        'data.prompts': material / 'prompts.jsonl',
        'data.shards': tmp_path / 'shards',
        'data.rows': tmp_path / 'rows',
        'train.max_steps': 1,
    }
    flags = [f'--config={path}:{variant}', *(f'--config.{name}={value}' for name, value in settings.items())]
    for stage in () if c.online.prompts else ('shards', 'rows'):
        tiny.run_program(f'data_pipelines.{stage}', *flags)
    program = 'rlhi_jax.online' if c.online.prompts else 'rlhi_jax.train'
    if c.online.prompts:  # a random model's replies must be short, and end
        flags += ['--config.sampler.new_tokens=24', f'--config.sampler.stop={tiny.STOP}']
    tiny.run_program(program, *flags, f'--workdir={tmp_path / "run"}')
    (step,) = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
    assert saved_steps(tmp_path / 'run') == [1] and math.isfinite(step['loss']) and step['pairs'] >= 1
