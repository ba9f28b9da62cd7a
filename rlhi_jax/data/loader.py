"""From a row plan to batches of rows, through Grain; the whole state is the number of the next step."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from rlhi_jax.data.encode import TreeEncoder
from rlhi_jax.data.plan import RowPlan
from rlhi_jax.data.rows import Row, empty_row, lay_out, pack
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.data.tree import Interaction
from rlhi_jax.tokenizers.template import ChatTemplate


def without_persona(tree: Interaction) -> Interaction:
    return dataclasses.replace(tree, persona='')


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Builds the rows of a plan; `sees_persona=False` renders the same pieces with the persona left out."""

    plan: RowPlan
    trees: Shards | View
    template: ChatTemplate
    sees_persona: bool = True

    def __len__(self) -> int:
        return len(self.plan.rows)

    def __getitem__(self, row: int) -> Row:
        """The row's arrays (see `rlhi_jax.data.rows`); row -1 is padding only."""
        if row < 0:
            return empty_row(self.plan.capacities)
        parts = []
        for index, piece, first in self.plan.rows[row]:
            tree = self.trees[index]
            encoder = TreeEncoder(tree if self.sees_persona else without_persona(tree), self.template)
            parts.append(lay_out(encoder.encode(piece, first)))
        return pack(parts, self.plan.capacities)


class RowOrder:
    """The order in which rows are seen: a new shuffle each epoch, the last batch filled up with padding rows."""

    def __init__(self, num_rows: int, batch_rows: int, epochs: int, seed: int):
        self._rows = grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat(epochs)
        self._batch = batch_rows
        self.num_steps = math.ceil(len(self._rows) / batch_rows)

    def __getitem__(self, step: int) -> list[int]:
        """Row numbers of one step's batch, -1 for padding."""
        wanted = range(step * self._batch, (step + 1) * self._batch)
        return [int(self._rows[i]) if i < len(self._rows) else -1 for i in wanted]


def in_order(rows: Sequence[int], batch_rows: int) -> list[list[int]]:
    """Rows in the given order, in batches that padding rows (-1) fill up."""
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
) -> Iterator[Row]:
    """Stacked rows of this process, step by step, prefetched.

    Args:
      read: the arrays of a row by its number.
      order: row numbers of each step's global batch.
      first_step: where to go on; a resumed run passes its step.
      num_steps: where to stop.
      local_rows: which of a batch's rows this process needs, by place in the batch.
      threads: rows are read ahead by this many threads.

    Any exception in `read` reaches the caller: it never passes for the end of the data.
    """
    places = np.asarray(local_rows)

    def load(step: int) -> Row:
        numbers = order[step]
        try:
            rows = [read(numbers[place]) for place in places]
        except StopIteration as error:  # it would pass for the end of the data
            raise RuntimeError(f'reading a row of step {step} raised StopIteration') from error
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    steps = grain.MapDataset.range(first_step, max(first_step, num_steps)).map(load)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(steps.to_iter_dataset(options))
