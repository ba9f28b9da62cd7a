"""The library's worked examples hold."""

import doctest

import pytest

from data_pipelines import acceptance, filters, languages, openings, replies, users
from data_pipelines.sources import conversations, tastes
from rlhi_jax import collectives, errors, flops
from rlhi_jax.data import rows
from rlhi_jax.models import tree_blocks

MODULES = [collectives, errors, flops, rows, tree_blocks, conversations, tastes]
MODULES += [acceptance, filters, languages, openings, replies, users]


@pytest.mark.parametrize('module', MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
