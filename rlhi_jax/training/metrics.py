"""Logs training steps as JSON lines and TensorBoard events.

A resumed run first removes the log entries of the steps that it will repeat.
"""

import json
from pathlib import Path
from typing import Any

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
