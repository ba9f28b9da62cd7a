"""The loop as a program that kills itself with SIGKILL half-way through one stage; `test_loop` starts it.

python tests/killed_loop.py STAGE --config=… --workdir=…    STAGE 'none' runs to the end

Its simulated users take every reply for one on their topic, and say what they like: to a random model they would else
say nothing but that it makes no sense, of which no persona comes.
"""

import dataclasses
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

STAGE_RUN, TRAIN, EXPORT, SAVE = stage.Stage.run, loop.train, loop.export_model, RunCheckpoints.save


def arm(doomed: str) -> None:
    """Make one stage, one training run ('train OBJECTIVE') or the export ('export') kill this process on its way."""
    running = ['']

    def die_in(name: str) -> None:
        if name == doomed:
            os.kill(os.getpid(), signal.SIGKILL)

    class DyingJournal(journal.Journal):
        """Its third entry in the doomed stage is the last."""

        def add(self, key, value):
            super().add(key, value)
            self.added = getattr(self, 'added', 0) + 1
            if self.added == 3:
                die_in(running[0])

    def run(self, config, *, overwrite=False):
        """As ever, but that the doomed stage dies with its work done and not yet in place, if not before."""

        def work(task):
            counts = self.work(task)
            die_in(self.name)
            return counts

        running[0] = self.name
        return STAGE_RUN(dataclasses.replace(self, work=work), config, overwrite=overwrite)

    def train(config, workdir):
        running[0] = f'train {config.objective}'
        return TRAIN(config, workdir)

    def save(self, *args):
        """The first checkpoint of the doomed training is begun and never finished."""
        SAVE(self, *args)
        die_in(running[0] if running[0].startswith('train') else '')

    def export(*args, **options):
        die_in('export')
        return EXPORT(*args, **options)

    stage.Journal, stage.Stage.run, RunCheckpoints.save = DyingJournal, run, save
    loop.train, loop.export_model = train, export


if __name__ == '__main__':
    users.valid = satisfaction.valid = lambda *_: True
    arm(sys.argv.pop(1))
    define_flags()
    program.run(loop.main)
