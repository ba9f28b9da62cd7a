"""A run that is killed, stopped or moved to more processes ends with the same result as an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from rlhi_jax.io.errors import STOPPED
from rlhi_jax.io.files import read_json
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import abstract_params
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.training.metrics import StepLog

SEED = 20260
EPOCHS, NUM_STEPS = 14, 42
SHORT_STEPS = 8  # of runs that are compared across numbers of processes
PATIENCE = 180.0  # seconds that any single process may take
EVERY_STEP = '--config.checkpoint.every_steps=1'

Snapshot = dict[str, list[str]]  # names in a run's checkpoints folder, and what each of them holds


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('resume')


@pytest.fixture(scope='module')
def flags(folder) -> list[str]:
    # 6 rows, 2 in a step: every epoch has 3 steps, and the reference pass 3 batches.
    return [*tiny.prepare(folder), '--config.train.batch_rows=2', f'--config.train.epochs={EPOCHS}']


@pytest.fixture(scope='module')
def undisturbed(folder, flags) -> Path:
    """The run that all others must equal. It fills the compilation cache, so its own programs are freshly compiled."""
    return finish(folder, flags, 'undisturbed', EVERY_STEP)


@pytest.fixture(scope='module')
def short(folder, flags) -> Path:
    """A shorter run in one process, which saves at its end only."""
    return finish(folder, flags, 'short', *in_short())


@pytest.fixture(scope='module')
def stopped(folder, flags) -> tuple[Path, subprocess.CompletedProcess]:
    """The short run, sent SIGTERM in the middle."""
    workdir = folder / 'stopped'
    process = start(folder, flags, workdir, *in_short())
    wait_for(process, lambda: len(lines(workdir / 'metrics.jsonl')) >= 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    return workdir, subprocess.CompletedProcess(process.args, process.returncode, out, err)


def in_short() -> list[str]:
    return [f'--config.train.max_steps={SHORT_STEPS}', '--config.checkpoint.every_steps=1000']


def environment(folder: Path) -> dict[str, str]:
    # Compiled programs are kept between processes: a restart then takes seconds.
    cache = dict(
        JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled'),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
    )
    one_device = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
    return {**one_device, **cache, 'JAX_PLATFORMS': 'cpu'}


def start(folder: Path, flags: list[str], workdir: Path, *more: str, processes: int = 1) -> subprocess.Popen:
    launcher = ['launch/local.py', f'--processes={processes}', '--', sys.executable] if processes > 1 else []
    command = [sys.executable, *launcher, '-m', 'rlhi_jax.train', *flags, *more, f'--workdir={workdir}']
    return subprocess.Popen(
        command,
        cwd=tiny.ROOT,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, flags: list[str], name: str, *more: str, processes: int = 1) -> Path:
    """Run to the end, from the step that the workdir has reached."""
    process = start(folder, flags, folder / name, *more, processes=processes)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err[-3000:]
    return folder / name


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f'ended before its time: {process.communicate()[1][-3000:]}'
        if time.monotonic() > end:
            process.kill()
            raise AssertionError('waited in vain')
        time.sleep(0.002)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8').splitlines() if path.exists() else []


def snapshot(workdir: Path) -> Snapshot:
    """The contents of the checkpoints folder; names may vanish while they are listed."""
    return {name: names_in(workdir / 'checkpoints' / name) for name in names_in(workdir / 'checkpoints')}


def names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_writing(checkpoints: Snapshot) -> bool:
    return any('orbax-checkpoint-tmp' in name for name in checkpoints)


def is_deleting(checkpoints: Snapshot) -> bool:
    return any(name.isdigit() and parts and '_CHECKPOINT_METADATA' not in parts for name, parts in checkpoints.items())


def newest(workdir: Path) -> int:
    return max((int(name) for name in snapshot(workdir) if name.isdigit()), default=0)


def read_params(folder: Path) -> dict:
    """Parameters of a model folder or of a run's last checkpoint, as they are on disk."""
    path = (
        folder / 'params' if (folder / 'params').exists() else folder / 'checkpoints' / str(newest(folder)) / 'params'
    )
    abstract = abstract_params(Decoder(tiny.SPEC), make_mesh(dict(data=1, fsdp=-1, tensor=1)))
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(checkpointer.restore(path, abstract))


def assert_same_run(run: Path, expected: Path) -> None:
    """The same examples, metrics and parameters to the last bit."""
    for name in ('examples.jsonl', 'metrics.jsonl'):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    assert newest(run) == newest(expected) == len(lines(run / 'examples.jsonl'))
    jax.tree.map(np.testing.assert_array_equal, read_params(run), read_params(expected))


def assert_same_updates(run: Path, expected: Path, initial: Path) -> None:
    """The same examples, and updates that differ by less than 1e-3 in every tensor."""
    assert (run / 'examples.jsonl').read_bytes() == (expected / 'examples.jsonl').read_bytes()
    assert newest(run) == newest(expected)

    def check(path, start, ours, theirs):
        distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start)
        assert distance < 1e-3, (jax.tree_util.keystr(path), distance)

    jax.tree_util.tree_map_with_path(check, *map(read_params, (initial, run, expected)))


def test_killed_ten_times(folder, flags, undisturbed):
    """kill -9 in a chain of restarts: in start-up, the reference pass, while saving, while deleting, and anywhere."""
    rng, workdir = random.Random(SEED), folder / 'killed'
    moments = ['reference', 'start', *rng.sample(['writing'] * 4 + ['deleting'] + ['anywhere'] * 3, 8)]
    caught = []
    for moment in moments:
        process = start(folder, flags, workdir, EVERY_STEP)
        try:
            if moment == 'reference':
                wait_for(process, (workdir / 'reference' / 'part-000000.npz').exists)
            elif moment == 'start':
                time.sleep(rng.uniform(0.5, 3.5))
            else:
                saved = newest(workdir) + rng.randrange(2)
                wait_for(process, lambda saved=saved: newest(workdir) > saved)
                if moment == 'anywhere':
                    time.sleep(rng.uniform(0.0, 0.3))
                else:
                    there = is_writing if moment == 'writing' else is_deleting
                    wait_for(process, lambda there=there: there(snapshot(workdir)))
                    time.sleep(rng.uniform(0.0, 0.06) if moment == 'writing' else 0.0)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        caught.append((moment, newest(workdir), is_writing(snapshot(workdir)), is_deleting(snapshot(workdir))))
    assert sum(writing for _, _, writing, _ in caught) >= 3, caught
    assert caught[-1][1] < NUM_STEPS, caught
    finish(folder, flags, 'killed', EVERY_STEP)
    assert_same_run(workdir, undisturbed)
    assert not is_deleting(snapshot(workdir)) and len(snapshot(workdir)) == 2, 'leftovers of killed saves'


def test_sigterm_saves_and_says_so(folder, flags, stopped, short):
    workdir, ended = stopped
    assert ended.returncode == STOPPED, ended.stderr
    saved = newest(workdir)
    assert 2 <= saved < SHORT_STEPS
    assert f'saved at step {saved} of {SHORT_STEPS}; the same command' in ended.stdout
    assert len(lines(workdir / 'metrics.jsonl')) == len(lines(workdir / 'examples.jsonl')) == saved
    shutil.copytree(workdir, folder / 'resumed')
    assert_same_run(finish(folder, flags, 'resumed', *in_short()), short)


def test_two_processes(folder, flags, stopped, short):
    """Two processes from the start, and one process's run taken over by two, train like one process."""
    shutil.copytree(stopped[0], folder / 'taken over')
    for name in ('taken over', 'two'):
        run = finish(folder, flags, name, *in_short(), processes=2)
        assert_same_updates(run, short, folder / 'model')


def test_two_processes_stop_together(folder, flags, short):
    """SIGTERM to the launcher: both processes save the same step; one process resumes from it."""
    workdir = folder / 'two stopped'
    mesh = ['--config.mesh.data=-1', '--config.mesh.fsdp=1']
    # A checkpoint a step makes steps long enough for the signal to come between them, on a busy machine too.
    process = start(folder, flags, workdir, *in_short(), EVERY_STEP, *mesh, processes=2)
    wait_for(process, lambda: len(lines(workdir / 'metrics.jsonl')) >= 1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == STOPPED, err[-3000:]
    assert f'saved at step {newest(workdir)} of {SHORT_STEPS}; the same command' in out
    assert out.count('saved at step') == 1
    assert newest(workdir) < SHORT_STEPS
    assert_same_updates(finish(folder, flags, workdir.name, *in_short()), short, folder / 'model')


@pytest.mark.parametrize(
    ('flag', 'key'),
    [('optimizer.learning_rate=2e-3', 'config.optimizer.learning_rate'), ('dpo.beta=0.2', 'config.dpo.beta')],
)
def test_another_setting_is_refused(folder, flags, undisturbed, flag, key):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*')}
    process = start(folder, flags, undisturbed, EVERY_STEP, f'--config.{flag}')
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and not out
    assert err.count('\n') == 1 and err.startswith('error: ') and key in err and flag.split('=')[0] in err
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob('*')} == before


def test_half_a_line_is_cut_off_by_a_finished_run(folder, flags, undisturbed):
    """Running a finished run again repairs its logs and changes nothing else."""
    shutil.copytree(undisturbed, folder / 'again')
    for name in ('metrics.jsonl', 'examples.jsonl'):
        with open(folder / 'again' / name, 'a', encoding='utf-8') as file:
            file.write('{"step": 29, "lo')
    assert_same_run(finish(folder, flags, 'again', EVERY_STEP), undisturbed)


def test_steps_that_come_again_are_cut_off(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    log = StepLog(path, next_step=2)
    log.write(2, {'loss': 0.125})
    log.close()
    assert [json.loads(line) for line in lines(path)] == [
        {'step': 0, 'loss': 1.0},
        {'step': 1, 'loss': 0.5},
        {'step': 2, 'loss': 0.125},
    ]
    assert names_in(tmp_path) == ['metrics.jsonl']


def test_a_run_is_another_with_other_weights(folder, undisturbed):
    """A trained model is distinguished from its initial one, so a reference cache of one never serves the other."""
    run = read_json(undisturbed / 'run.json', '')
    assert set(run) == {'config', 'rows', 'model'} and 'mesh' not in run['config'], 'the mesh may change on resume'
    assert (
        read_json(undisturbed / 'model.json', '')['weights']
        != read_json(folder / 'model' / 'model.json', '')['weights']
    )
