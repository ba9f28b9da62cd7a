"""Sorts a manifest's counts into kept and dropped items, and sums them up in one line."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhi_jax.io.progress import duration

_SHOWN = 3  # counts to list by name; the others are summed


class Step(NamedTuple):
    """The names under which a stage counts one kind of item, such as turns.

    The data card uses them to check that every item read was either kept or dropped. If a count of dropped items
    matches the prefixes of several steps, it belongs to the step with the longest matching prefix.

    Attributes:
      unit: the kind of item, in the plural.
      read: names of the counts of items read; empty if the stage does not count the items it reads.
      dropped: the prefixes of the names of counts of dropped items.
    """

    unit: str
    read: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ('dropped_',)


def is_kept(name: str) -> bool:
    """Return whether the count with this name is a number of kept items, in the same unit as the items read."""
    return name.startswith('kept_') or name.endswith('_kept') or name == 'claims'


def dropped_by_unit(steps: Sequence[Step], counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the numbers of dropped items, keyed by the unit of their step and then by reason."""
    step_of = {prefix: step for step in steps for prefix in step.dropped}
    dropped: dict[str, dict[str, int]] = {step.unit: {} for step in steps}
    for name, number in counts.items():
        if prefixes := [prefix for prefix in step_of if name.startswith(prefix)]:
            dropped[step_of[max(prefixes, key=len)].unit][name.removeprefix('dropped_')] = number
    return dropped


def in_words(steps: Sequence[Step], shown: Sequence[str], counts: Mapping[str, int]) -> str:
    """Return one line with the numbers of kept and dropped items, the most frequent reasons and the teacher's cost.

    Args:
      steps: the stage's steps; the line describes only the first. If there are no steps, the line shows all counts.
      shown: the names of other counts to show.
      counts: the stage's counts.

    >>> in_words([Step('turns', ('turns_read',))], ['mined'], dict(turns_read=9, kept_a=7, mined=3, dropped_too_long=2))
    'kept 7 of 9 turns, dropped 2 (too long 2); 3 mined'
    """
    parts = [_first_step(steps, counts)] if steps and any(name in counts for name in steps[0].read) else []
    others = shown if steps else [name for name in counts if counts[name] and not name.startswith('teacher_')]
    parts += [', '.join(f'{counts[name]:,} {_words(name)}' for name in others if name in counts)]
    if tokens := counts.get('teacher_tokens_in', 0) + counts.get('teacher_tokens_out', 0):
        price = counts['teacher_cost_millionths'] / 1e6
        parts.append(f'the teacher used {tokens:,} tokens' + (f', which cost {price:,.2f}' if price else ''))
    return '; '.join(filter(None, parts))


def with_time(line: str, seconds: float) -> str:
    """Append the time that a stage took to its line of counts, which may be empty."""
    return '; '.join(filter(None, (line, duration(seconds))))


def _first_step(steps: Sequence[Step], counts: Mapping[str, int]) -> str:
    step = steps[0]
    kept = {name.removeprefix('kept_'): number for name, number in counts.items() if is_kept(name) and number}
    dropped = dropped_by_unit(steps, counts)[step.unit]
    text = f'kept {sum(kept.values()):,} of {sum(counts.get(name, 0) for name in step.read):,} {step.unit}'
    text += f' ({_largest(kept)})' if len(kept) > 1 else ''
    return text + (f', dropped {sum(dropped.values()):,} ({_largest(dropped)})' if any(dropped.values()) else '')


def _largest(counts: Mapping[str, int]) -> str:
    """List the largest counts, and the sum of the others, in words."""
    sizes = sorted(filter(counts.get, counts), key=lambda name: (-counts[name], name))
    texts = [f'{_words(name)} {counts[name]:,}' for name in sizes[:_SHOWN]]
    if rest := sum(counts[name] for name in sizes[_SHOWN:]):
        texts.append(f'others {rest:,}')
    return ', '.join(texts)


def _words(name: str) -> str:
    return name.replace('_', ' ')
