"""The library's worked examples hold."""

import doctest

import pytest

from data_pipelines import ingest, pairs
from data_pipelines.sources import tastes
from rlhi_jax import errors
from rlhi_jax.data import rows
from rlhi_jax.models import attention


@pytest.mark.parametrize('module', [errors, rows, attention, ingest, pairs, tastes], ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
