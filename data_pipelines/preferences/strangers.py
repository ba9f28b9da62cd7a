"""Chooses a stranger: another author whose wish is the opposite of a user's, or says something that the user has not.

The answers to one request under the two wishes then differ in something that each wish asks for. A wish says something
new to a persona if the persona does not mention what the wish asks for, or takes the other side. Both wishes must say
something new to the other's persona. Of the strangers who fit, one whose wish contradicts the user's comes first:
teachers meet many a wish that nobody expressed, such as that for prose, so only the opposite wish gives a reply that
fails it.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from data_pipelines.core.records import Wish
from data_pipelines.persona.claims import SAME, contradicts
from data_pipelines.text.styles import stems, styles
from rlhi_jax.io.files import digest

T = TypeVar('T')

POOL = 4096  # the largest number of wishes of a split among which strangers are looked for
TRIES = 256  # the largest number of wishes that are looked at for one user


def says_something_new(claim: str, persona: str) -> bool:
    """Whether a claim asks for something that a persona does not ask for.

    >>> [says_something_new('I like lists.', f'I like {wish}.') for wish in ('short answers', 'prose', 'lists, short')]
    [True, True, False]
    """
    asked, known = styles(claim), styles(persona)
    if asked:
        return any(known.get(matter) != side for matter, side in asked.items())
    words = stems(claim)
    return len(words & stems(persona)) < SAME * len(words)


def pools(wishes: Iterable[tuple[str, Wish]]) -> dict[str, list[Wish]]:
    """Return at most `POOL` wishes of each split, keyed by split: those with the lowest hashes, in the order of these.

    Args:
      wishes: (split, wish) pairs.
    """
    ranked: dict[str, list[tuple[str, int, Wish]]] = defaultdict(list)
    for number, (split, wish) in enumerate(wishes):
        ranked[split].append((digest(wish['author'], wish['claim'], wish['feedback']), number, wish))
        if len(ranked[split]) >= 2 * POOL:  # so that memory does not grow with the number of wishes
            ranked[split] = heapq.nsmallest(POOL, ranked[split])
    return {split: [wish for *_, wish in heapq.nsmallest(POOL, entries)] for split, entries in ranked.items()}


def stranger_to(wish: Wish, pool: Sequence[Wish], name: str) -> Wish | None:
    """Return the wish of a stranger from a pool, or None if none of the `TRIES` wishes that are looked at fits.

    The first wish that fits and contradicts the user's is returned or, if there is none, the first that fits.

    Args:
      wish: the user's wish.
      pool: the wishes of all authors of the user's split.
      name: the id of the user's feedback turn. Its hash decides where in the pool the search begins.
    """
    first = None
    for other in drawn_from(pool, digest(name)):
        if (
            other['author'] != wish['author']
            and says_something_new(other['claim'], wish['persona'])
            and says_something_new(wish['claim'], other['persona'])
        ):
            if contradicts(wish['claim'], other['claim']):
                return other
            first = first or other
    return first


def drawn_from(pool: Sequence[T], start: str) -> Iterator[T]:
    """Yield the next `TRIES` entries of a pool, or all if there are fewer, from the place that a digest names."""
    first = int(start, 16) % len(pool)
    for step in range(min(TRIES, len(pool))):
        yield pool[(first + step) % len(pool)]
