"""Every experiment's config is valid in each of its variants, and its docstring names them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import tiny

from rlhi_jax.config import check_config
from rlhi_jax.io.errors import UserError

CONFIGS = sorted((tiny.ROOT / 'configs').glob('*.py'))
ARMS = {'feasibility': ('oracle', 'inferred', 'complaints'), 'mt_bench': ('dpo', 'reward')}


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
