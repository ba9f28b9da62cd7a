"""Logs training steps as JSON lines and TensorBoard events.

A resumed run first removes the log entries of the steps that it will repeat.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import complete_lines, write_bytes

METRICS, EXAMPLES = 'metrics.jsonl', 'examples.jsonl'


class StepLog:
    """A JSON lines file in which every line has a `step` field.

    Opening the file removes all lines whose `step` is `next_step` or later.
    """

    def __init__(self, path: Path, *, next_step: int):
        kept = [line for line in complete_lines(path) if json.loads(line)['step'] < next_step]
        write_bytes(path, b''.join(kept))
        self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 - stays open during the run

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({'step': step, **values}, ensure_ascii=False).encode() + b'\n')

    def close(self) -> None:
        self._file.close()


def trim_logs(workdir: Path, *, next_step: int) -> None:
    """Remove any lines for step `next_step` or later that a killed run left in a workdir's JSON lines logs."""
    for name in (METRICS, EXAMPLES):
        if (workdir / name).exists():
            StepLog(workdir / name, next_step=next_step).close()


class RunLog:
    """The logs in a workdir: metrics.jsonl, examples.jsonl (the pairs that each step trained on) and tensorboard/."""

    def __init__(self, workdir: Path, *, next_step: int):
        from tensorboardX import SummaryWriter  # imports PyTorch where it is installed, which takes a second

        self._metrics = StepLog(workdir / METRICS, next_step=next_step)
        self._examples = StepLog(workdir / EXAMPLES, next_step=next_step)
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=next_step)

    def examples(self, step: int, names: list[str]) -> None:
        self._examples.write(step, {'pairs': names})

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._metrics.write(step, values)
        for name, value in values.items():
            self._board.add_scalar(f'train/{name}', value, step)

    def close(self) -> None:
        for part in (self._metrics, self._examples, self._board):
            part.close()


class LateMetrics:
    """The latest step's metrics, which are read late to keep the device busy.

    They are read after the next step is dispatched, or when `flush` is called, as before a checkpoint is saved.

    Args:
      every: the number of steps between log entries.
      log: the run's log; None in processes that do not write it.
      show: shows a step, with a note on its loss and accuracy and on the rate.
    """

    def __init__(self, every: int, log: RunLog | None, show: Callable[[int, str], None]):
        self._every, self._log, self._show = every, log, show
        self._step, self._metrics = -1, None
        self._time, self._pairs = time.monotonic(), 0

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Read the metrics of the step before, and keep those of this step.

        Raises:
          UserError: the loss or the gradient of the step before is not finite.
        """
        self.flush()
        self._step, self._metrics = step, metrics

    def flush(self, *, last: bool = False) -> None:
        """Read, log and show the latest step's metrics, unless this has been done; with `last`, always log it."""
        if self._metrics is None:
            return
        step, values = self._step, {name: float(value) for name, value in self._metrics.items()}
        self._metrics = None
        # Every process reads the same metrics, so if one process stops here, all do. The step gets no checkpoint.
        if not np.isfinite(values['loss'] + values['gradient_norm']):
            raise UserError(
                f'the loss is {values["loss"]} and the gradient norm {values["gradient_norm"]} at step {step}: lower '
                'config.optimizer.learning_rate'
            )
        if self._log is None:
            return
        self._pairs += int(values['pairs'])
        if (step + 1) % self._every == 0 or last:
            self._log.metrics(step, values)
        seconds = max(time.monotonic() - self._time, 1e-9)
        note = f'loss {values["loss"]:.4f}  accuracy {values["accuracy"]:.3f}  {self._pairs / seconds:.3g} pairs/s'
        self._show(step, note)
