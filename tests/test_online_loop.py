"""Online training as a method of the loop: it is the program `rlhi_jax.online`, and resumes like any part."""

import json
import signal
import subprocess
import sys

import pytest
import tiny
from test_loop import contents
from test_loop import flags as loop_flags
from test_online import assert_same, by_id, pairs_of

from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.rounds.settings import check_settings

ONLINE = (
    '--config.loop.method=rewards',
    '--config.pairs.against=policy',
    '--config.candidates.scorer=policy',
    '--config.online.prompts=4',
    '--config.optimizer.schedule=constant',
)
LOOP = (sys.executable, 'tests/killed_loop.py')


def flags(model, workdir) -> list[str]:
    return [*loop_flags(model, workdir), *ONLINE]


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp('model'), seed=6, spec=tiny.LOOP_SPEC)


@pytest.fixture(scope='module')
def finished(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('loop') / 'run'
    done = run(*LOOP, 'none', *flags(model, workdir))
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def test_the_loop_trains_as_the_program_does(model, finished, tmp_path):
    report = json.loads((finished / 'report.json').read_text())
    assert not {'candidates', 'dpo: pairs', 'dpo: rows'} & set(report['funnel'])
    assert report['dpo']['not_evaluated'] == 'an online run holds out no pairs' and report['pairs_to_read']
    assert set(report['satisfaction']['models']) == {'before', 'after'} and not report['gate']['promoted']
    assert (finished / 'dpo' / 'huggingface' / 'model.safetensors').exists()
    folders = [f'--config.data.{name}={finished / name}' for name in ('conversations', 'follow_ups', 'personas')]
    alone = [flag for flag in flags(model, tmp_path / 'alone') if 'loop.' not in flag]
    tiny.run_program('rlhi_jax.online', *alone, *folders, '--config.optimizer.learning_rate=1e-3')
    assert by_id(pairs_of(finished / 'dpo' / 'run')) == by_id(pairs_of(tmp_path / 'alone')) != {}
    assert_same(finished / 'dpo' / 'run', tmp_path / 'alone')


def test_a_finished_loop_has_nothing_to_do(model, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob('*.jsonl')}
    again = tiny.run_program('rlhi_jax.loop', *flags(model, finished))
    assert 'the run is complete' in again.stdout
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} <= {finished / 'times.jsonl'}


def test_killed_in_training_it_ends_in_the_same_bytes(model, finished, tmp_path):
    killed = run(*LOOP, 'train dpo', *flags(model, tmp_path / 'run'))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert json.loads((tmp_path / 'run' / 'report.json').read_text())['unfinished']['part'] == 'dpo: training'
    resumed = run(*LOOP, 'none', *flags(model, tmp_path / 'run'))
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    ours, theirs = contents(tmp_path / 'run'), contents(finished)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]


def test_two_processes_make_the_same_pairs(model, finished, tmp_path):
    command = (sys.executable, 'launch/local.py', '--processes=2', '--', *LOOP, 'none')
    done = run(*command, *flags(model, tmp_path / 'run'))
    assert done.returncode == 0, done.stderr[-3000:]
    assert by_id(pairs_of(tmp_path / 'run' / 'dpo' / 'run')) == by_id(pairs_of(finished / 'dpo' / 'run'))


@pytest.mark.parametrize(
    ('setting', 'value', 'says'),
    [
        ('loop.method', 'both', "config.online.prompts=4 trains on rewards alone, but config.loop.method='both'"),
        ('optimizer.schedule', 'linear', "config.optimizer.schedule='linear' needs the number of steps"),
        ('candidates.samples', 1, 'config.candidates.samples is 1'),
    ],
)
def test_settings_that_do_not_suit_are_refused_first(model, setting, value, says):
    c = base_config()
    c.model.path, c.online.prompts, c.optimizer.schedule, c.loop.method = str(model), 4, 'constant', 'rewards'
    check_settings(c)
    section, key = setting.split('.')
    c[section][key] = value
    with pytest.raises(UserError, match=says.replace('.', r'\.')):
        check_settings(c)
