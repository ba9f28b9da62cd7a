"""The loop as a program that kills itself with SIGKILL half-way through one stage; `test_loop` starts it.

python tests/killed_loop.py STAGE --config=… --workdir=…
"""

import os
import signal
import sys

from data_pipelines import stage
from rlhi_jax import errors, loop, train
from rlhi_jax.checkpoints import RunCheckpoints
from rlhi_jax.config import define_flags

target = sys.argv.pop(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(stage.Journal):
    """A journal whose third entry in the doomed stage is its last, half a line of the fourth following it."""

    def add(self, key, value):
        super().add(key, value)
        self.added = getattr(self, 'added', 0) + 1
        if running == target and self.added == 3:
            os.write(self._file.fileno(), b'["half a li')
            die()


running = ''
stage_run = stage.Stage.run


def run(self, config, *, overwrite=False):
    """As ever, but that the doomed stage dies with its work done and not yet in place, if not before."""
    global running
    running = self.name

    def work(config, folder):
        counts = self.work(config, folder)
        if running == target:
            die()
        return counts

    doomed = stage.Stage(self.name, work, self.output, self.identity)
    return stage_run(doomed, config, overwrite=overwrite)


def save(self, step, *args):
    """The first checkpoint of the doomed training is begun and never finished."""
    saved(self, step, *args)
    if target == f'train {train_objective}':
        die()


train_objective = ''
saved, trained = RunCheckpoints.save, train.train


def training(config, workdir):
    global train_objective
    train_objective = config.objective
    return trained(config, workdir)


def export(*args, **options):
    if target == 'export':
        die()
    return exported(*args, **options)


exported = loop.export_model
loop.train, loop.export_model, RunCheckpoints.save, stage.Stage.run = training, export, save, run
for module in ('data_pipelines.generation',):
    sys.modules[module].Journal = Dying

if __name__ == '__main__':
    define_flags()
    errors.run(loop.main)
