"""Run the loop, but kill this process with SIGKILL halfway through one stage. `test_loop` starts this program.

python tests/killed_loop.py STAGE --config=… --workdir=…    with 'none' as STAGE, the loop runs to its end

Here the simulated users accept every reply as valid and complain about tastes. Otherwise they would only tell a random
model that it misses the question, and those complaints would lead to no persona.
"""

import dataclasses
import functools
import os
import signal
import sys

from data_pipelines import satisfaction
from data_pipelines.core import journal, stage
from data_pipelines.simulator import users
from rlhi_jax import loop
from rlhi_jax.cli import program
from rlhi_jax.cli.program import define_flags
from rlhi_jax.models.checkpoints import RunCheckpoints

STAGE_RUN, EXPORT, SAVE = stage.Stage.run, loop.export_model, RunCheckpoints.save
TRAIN = dict(train=loop.train, train_online=loop.train_online)


def arm(doomed: str) -> None:
    """Make this process kill itself in a stage, in a training run ('train OBJECTIVE') or in the export ('export')."""
    running = ['']

    def die_in(name: str) -> None:
        if name == doomed:
            os.kill(os.getpid(), signal.SIGKILL)

    class DyingJournal(journal.Journal):
        """A journal that kills the process after the third entry if the doomed stage is running."""

        def add(self, key, value):
            super().add(key, value)
            self.added = getattr(self, 'added', 0) + 1
            if self.added == 3:
                die_in(running[0])

    def run(self, config, *, overwrite=False):
        """Run a stage. The doomed stage dies before its finished folder is put in place, if not earlier."""

        def work(task):
            counts = self.work(task)
            die_in(self.name)
            return counts

        running[0] = self.name
        return STAGE_RUN(dataclasses.replace(self, work=work), config, overwrite=overwrite)

    def train(name, config, *args):
        running[0] = f'train {config.objective}'
        return TRAIN[name](config, *args)

    def save(self, *args):
        """Save a checkpoint. The first checkpoint of the doomed training run is started but never finished."""
        SAVE(self, *args)
        die_in(running[0] if running[0].startswith('train') else '')

    def export(*args, **options):
        die_in('export')
        return EXPORT(*args, **options)

    stage.Journal, stage.Stage.run, RunCheckpoints.save = DyingJournal, run, save
    loop.export_model = export
    for name in TRAIN:
        setattr(loop, name, functools.partial(train, name))


if __name__ == '__main__':
    users.valid = satisfaction.valid = lambda *_: True
    arm(sys.argv.pop(1))
    define_flags()
    program.define_optional('redo', '')
    program.flags.DEFINE_bool('yes', False, '')
    program.start()
    program.run(loop.main)
