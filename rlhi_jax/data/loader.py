"""Builds batches of rows with Grain, from trees and a row plan (which pieces of which trees share a row).

The loader's entire state is the number of the next step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from rlhi_jax.data.encode import TreeEncoder
from rlhi_jax.data.plan import RowPlan
from rlhi_jax.data.rows import Batch, Row, empty_row, lay_out, pack, stack
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.data.tree import Interaction
from rlhi_jax.tokenizers.template import ChatTemplate


def without_persona(tree: Interaction) -> Interaction:
    """Return the same tree with an empty persona."""
    return dataclasses.replace(tree, persona='')


@dataclasses.dataclass(frozen=True)
class RowReader:
    """The rows of a row plan, built from the trees when they are read.

    With `sees_persona=False`, the rows contain the same pieces of trees, but no personas.
    """

    plan: RowPlan
    trees: Shards | View
    template: ChatTemplate
    sees_persona: bool = True

    def __len__(self) -> int:
        return len(self.plan.rows)

    def __getitem__(self, row: int) -> Row:
        """Return the row with a given number; row -1 is all padding."""
        if row < 0:
            return empty_row(self.plan.capacities)
        parts = []
        for index, piece, first in self.plan.rows[row]:
            tree = self.trees[index]
            encoder = TreeEncoder(tree if self.sees_persona else without_persona(tree), self.template)
            parts.append(lay_out(encoder.encode(piece, first)))
        return pack(parts, self.plan.capacities)


class RowOrder:
    """The rows of each training step's batch, reshuffled every epoch; padding rows (-1) fill up the last batch."""

    def __init__(self, num_rows: int, batch_rows: int, epochs: int, seed: int):
        self._rows = grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat(epochs)
        self._batch = batch_rows
        self.num_steps = math.ceil(len(self._rows) / batch_rows)

    def __getitem__(self, step: int) -> list[int]:
        """Return the row numbers in one step's batch; -1 is a padding row."""
        indices = range(step * self._batch, (step + 1) * self._batch)
        return [int(self._rows[i]) if i < len(self._rows) else -1 for i in indices]


def in_order(rows: Sequence[int], batch_rows: int) -> list[list[int]]:
    """Split rows into batches, in the given order; padding rows (-1) fill up the last batch."""
    filled = [*rows, *[-1] * (-len(rows) % batch_rows)]
    return [filled[start : start + batch_rows] for start in range(0, len(filled), batch_rows)]


def batches(
    read: Callable[[int], Row],
    order: Sequence[Sequence[int]] | RowOrder,
    *,
    first_step: int,
    num_steps: int,
    local_rows: Sequence[int],
    threads: int = 2,
) -> Iterator[Batch]:
    """Yield the part of each step's batch that this process needs; threads read the rows ahead of time.

    An exception in `read` always reaches the caller. A StopIteration becomes a RuntimeError, because Grain would
    mistake it for the end of the data.

    Args:
      read: function that reads the row with a given number.
      order: the row numbers in each step's global batch.
      first_step: the step to start at; a resumed run passes the step it resumes from.
      num_steps: total number of steps in the run; the last batch is for step `num_steps - 1`.
      local_rows: indices, within a global batch, of the rows that this process needs.
      threads: number of threads that read ahead.
    """
    indices = np.asarray(local_rows)

    def load(step: int) -> Batch:
        numbers = order[step]
        try:
            rows = [read(numbers[index]) for index in indices]
        except StopIteration as error:  # Grain would mistake it for the end of the data
            raise RuntimeError(f'reading a row of step {step} raised StopIteration') from error
        return stack(rows)

    steps = grain.MapDataset.range(first_step, max(first_step, num_steps)).map(load)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(steps.to_iter_dataset(options))
