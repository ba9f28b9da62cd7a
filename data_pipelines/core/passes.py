"""Blocks and passes: few items at once, and one model at a time, are in memory."""

import functools
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar('T')


def in_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in order; the last may be shorter."""
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block


def in_passes(source: Callable[[Counter], Iterator[T]], steps: Sequence[Callable], counts: Counter) -> Iterator[T]:
    """Send items through several steps, each of which asks a model and writes its answers to the journal.

    Every item completes a step before any item enters the next, so one model is in memory at a time, and never all
    items. In a later pass, earlier steps read their answers from the journal. The source is read to its end before the
    first step, so bad input is found before a model is asked.

    Args:
      source: source(counts) yields the items for the first step; it is called once for each pass.
      steps: step(items, counts) yields items for the next step.
      counts: receives the counts of the last pass.
    """
    for number in range(len(steps)):
        exhaust(_through(source, steps[:number], Counter()))
    yield from _through(source, steps, counts)


def at_most(
    most: int, source: Callable[[Counter], Iterator[T]], rank: Callable[[T], Any], counted: str
) -> Callable[[Counter], Iterator[T]]:
    """A source of at most `most` items of another source (0: all), in that source's order.

    Args:
      rank: the items with the lowest ranks are chosen; ranks are distinct.
      counted: the count of items that were not chosen.
    """
    if not most:
        return source
    chosen = set(heapq.nsmallest(most, map(rank, source(Counter()))))

    def chosen_items(counts: Counter) -> Iterator[T]:
        for item in source(counts):
            if rank(item) in chosen:
                yield item
            else:
                counts[counted] += 1

    return chosen_items


def exhaust(items: Iterable) -> None:
    """Read an iterable to its end and discard its items."""
    deque(items, maxlen=0)


def _through(source: Callable[[Counter], Iterator[T]], steps: Sequence[Callable], counts: Counter) -> Iterator[T]:
    return functools.reduce(lambda items, step: step(items, counts), steps, source(counts))
