"""Check that a stage's output changes only with its version, and that docstrings and moved code change neither."""

import ast
import json
import os
import shutil
import subprocess
import sys

import golden
import pytest
import tiny

from data_pipelines.core.registry import stage_named
from data_pipelines.raw import filters

RECORDED = json.loads(golden.RECORDED.read_text())


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    return dict(golden.cases(tmp_path_factory.mktemp('golden')))


def test_every_stage_is_recorded():
    assert golden.stages().keys() == RECORDED.keys()


@pytest.mark.parametrize('name', RECORDED)
def test_a_stage_gives_the_recorded_output_or_has_a_new_version(folders, name):
    output = golden.outcome(name, folders[name])
    assert not golden.fault(name, stage_named(name).version, output, RECORDED[name])


def test_a_changed_filter_asks_for_a_new_version(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, 'is_refusal', lambda reply: False)
    config = golden.ingest_config(tmp_path)
    stage_named('ingest').run(config)
    output = golden.outcome('ingest', tmp_path / 'conversations')
    version = stage_named('ingest').version
    assert 'raise its version in data_pipelines.ingest' in golden.fault('ingest', version, output, RECORDED['ingest'])
    raised = golden.fault('ingest', version + 1, output, RECORDED['ingest'])
    assert 'has a new version: record its output' in raised


def rewrapped(source: str) -> str:
    """Return source code with other docstrings, in which every word is on its own line."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0].value.value = '\n'.join(ast.get_docstring(node).split())
    return ast.unparse(tree)


def test_rewrapped_docstrings_make_no_folder_out_of_date(tmp_path, folders):
    """Run the whole loop again with other docstrings and without comments: no folder is made again."""
    from test_loop import flags

    for package in ('data_pipelines', 'tests'):
        shutil.copytree(
            tiny.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns('__pycache__', 'benchmarks')
        )
    for path in (tmp_path / 'data_pipelines').rglob('*.py'):
        path.write_text(rewrapped(path.read_text()))
    workdir = folders['card'].parent
    command = [sys.executable, 'tests/killed_loop.py', 'none', *flags(workdir.parent / 'model', workdir)]
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{tiny.ROOT}'}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = [line for line in done.stdout.splitlines() if line.startswith(f'{workdir}/') and 'saved at' not in line]
    assert made and not [line for line in made if 'up to date' not in line]
