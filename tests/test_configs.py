"""Every experiment's config, in each of its variants, is one that the programs take."""

import importlib.util
from pathlib import Path

import pytest

from rlhi_jax.config import base_config
from rlhi_jax.config.checks import check_config

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
VARIANTS = {
    'demo': [()],
    'feasibility': [(f'{arm}{smoke}',) for arm in ('oracle', 'inferred', 'complaints') for smoke in ('', ',smoke')],
    'mt_bench': [(f'{objective}{smoke}',) for objective in ('reward', 'dpo') for smoke in ('', ',smoke')],
    'realhumaneval': [()],
    'wildchat': [(), ('smoke',)],
}


def get_config(path: Path, *variant: str):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return check_config(module.get_config(*variant), base_config())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_variant_is_taken(path):
    found = [get_config(path, *variant) for variant in VARIANTS[path.stem]]
    assert len({str(config) for config in found}) == len(found)  # a variant changes something
