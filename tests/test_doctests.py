"""The library's worked examples hold."""

import doctest

import pytest

from data_pipelines import (
    acceptance,
    card_text,
    completions,
    filters,
    labels,
    languages,
    openings,
    prompts,
    replies,
    teacher_labels,
    users,
)
from data_pipelines.sources import conversations, tastes
from rlhi_jax import collectives, errors, flops
from rlhi_jax.data import rows
from rlhi_jax.models import tree_blocks

MODULES = [collectives, errors, flops, rows, tree_blocks, conversations, tastes, acceptance, completions, filters]
MODULES += [card_text, labels, languages, openings, prompts, replies, teacher_labels, users]


@pytest.mark.parametrize('module', MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
