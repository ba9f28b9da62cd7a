"""Process items in blocks and in passes, so that only a few items and one model are in memory at a time."""

import functools
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar('T')


def in_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, in order. The last list may be shorter."""
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block


def in_passes(source: Callable[[Counter], Iterator[T]], steps: Sequence[Callable], counts: Counter) -> Iterator[T]:
    """Pass items through several steps and yield the items from the last step.

    The steps query models and journal the answers. All items complete a step before any item enters the next step, so
    at most one model is in memory. Each pass streams the items from the source again, so they are never all in memory.
    In later passes, the earlier steps read their answers from the journal. The source is read to its end before the
    first step, so bad input is found before any model is queried.

    Args:
      source: source(counts) yields the items for the first step. It is called once per pass.
      steps: each step(items, counts) yields the items for the next step.
      counts: receives the counts of the last pass.
    """
    for number in range(len(steps)):
        exhaust(_through(source, steps[:number], Counter()))
    yield from _through(source, steps, counts)


def at_most(
    most: int, source: Callable[[Counter], Iterator[T]], rank: Callable[[T], Any], counted: str
) -> Callable[[Counter], Iterator[T]]:
    """Return a source that yields at most `most` items of another source (all if `most` is 0), in their original order.

    Args:
      rank: a function that returns an item's rank. The items with the lowest ranks are chosen. No two items may have
        the same rank.
      counted: the name under which the items that were not chosen are counted.
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
