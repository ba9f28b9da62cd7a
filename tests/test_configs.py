"""Every experiment's config is valid in each of its variants, and its docstring names them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import tiny

from rlhi_jax.config import check_config
from rlhi_jax.config.loop_paths import stage_config, with_paths
from rlhi_jax.io.errors import UserError
from rlhi_jax.loop import Round

CONFIGS = sorted((tiny.ROOT / 'configs').glob('*.py'))
ARMS = {
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
