"""Draws examples of records, and shortens their texts for the terminal."""

import bisect
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable

from data_pipelines.core.records import Record
from rlhi_jax.io.files import digest

WIDTH = 110  # columns
_INDENT, _NAME_WIDTH = 4, 11
_READ = 4000  # characters at the beginning of a text from which its excerpt is made


def readable(text: str) -> str:
    r"""Return a text on one line, without characters that could change what the terminal shows.

    >>> readable('Use\n\x1b[31mlists. ')
    'Use [31mlists.'
    """
    return ' '.join(''.join(letter if letter.isprintable() else ' ' for letter in text).split())


def excerpt(name: str, text: str, *, max_lines: int = 3) -> str:
    """Return the beginning of a text as indented lines for the terminal. The first line starts with `name`."""
    head = f'{"":{_INDENT}}{name:{_NAME_WIDTH}} '
    lines = textwrap.wrap(
        readable(text[:_READ]) or '(empty)',
        WIDTH,
        initial_indent=head,
        subsequent_indent=' ' * len(head),
        max_lines=max_lines,
        placeholder=' …',
    )
    return '\n'.join(lines)


def drawn(
    records: Iterable[Record], group: Callable[[Record], str], most: int
) -> tuple[Counter, dict[str, list[Record]]]:
    """Count the records in each group, and draw at most `most` per group: those whose ids have the lowest hashes.

    The same records are drawn every time, and only the drawn records are in memory.
    """
    counts: Counter = Counter()
    examples: dict[str, list[Record]] = {}
    for record in records:
        counts[name := group(record)] += 1
        bisect.insort(kept := examples.setdefault(name, []), record, key=lambda each: digest(each['id']))
        del kept[most:]
    return counts, examples
