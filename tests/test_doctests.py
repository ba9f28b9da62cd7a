"""The examples in docstrings are true."""

import doctest
import importlib

import pytest
import tiny

SOURCES = sorted(path for room in ('rlhi_jax', 'data_pipelines') for path in (tiny.ROOT / room).rglob('*.py'))
MODULES = [
    '.'.join(path.relative_to(tiny.ROOT).with_suffix('').parts) for path in SOURCES if '    >>> ' in path.read_text()
]


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name.removesuffix('.__init__')))
    assert found.attempted and not found.failed
