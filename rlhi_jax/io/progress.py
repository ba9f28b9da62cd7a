"""Shows the progress of a long-running job: a live bar on a terminal, or a line every few seconds elsewhere."""

import functools
import sys
import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_SECONDS = 10.0
_RECENT = 6  # the rate is measured over this many intervals between printed lines


@functools.cache
def _console() -> Console:
    """Return the console that all bars share; with a shared console, nested bars appear one below the other."""
    return Console(stderr=True)


def duration(seconds: float) -> str:
    """Format a duration as text.

    >>> duration(0.26), duration(200), duration(7500), duration(200000)
    ('0.3 s', '3 min 20 s', '2 h 5 min', '2 d 7 h')
    """
    if seconds < 10:
        return f'{seconds:.1f} s'
    for size, unit, smaller, name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'min'), (60, 'min', 1, 's')):
        if seconds >= size:
            return f'{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {name}'
    return f'{seconds // 1:.0f} s'


def recent_rate(points: Sequence[tuple[float, int]]) -> float | None:
    """Return the number of items finished per second between the first and the last point.

    The result is None if there are fewer than two points or no item was finished between them.

    Args:
      points: for each of the last few printed lines, its time (in seconds) and the number of items finished by then.
    """
    if len(points) < 2:
        return None
    (first_time, first_done), (last_time, last_done) = points[0], points[-1]
    return (last_done - first_done) / (last_time - first_time) or None


class Progress:
    """A context manager that shows how much of a total is done. With `enabled=False`, it shows nothing.

    A `Progress` inside the `with` block of another one is nested. When it ends, its bar disappears from the terminal.
    Without a terminal, a job prints nothing if it takes less than ten seconds, and a nested `Progress` prints no final
    line. The first line shows no rate, because a job spends its first seconds on compiling, loading a model or reading
    earlier results. Later lines show the rate over the last few lines, and the remaining time at that rate.

    Args:
      label: the name of the job.
      total: the number of items.
      unit: the kind of item, in the plural.
      done: the number of items that an earlier process has finished. They do not count towards the rate.
      enabled: whether to show anything.
    """

    _open = 0

    def __init__(self, label: str, total: int, *, unit: str, done: int = 0, enabled: bool = True):
        self._label, self._total, self._unit, self._first = label, total, unit, done
        self._enabled = enabled
        self._within = False
        self._bar = None
        if enabled and _console().is_terminal:
            columns = (
                TextColumn('{task.description}'),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn('{task.fields[note]}'),
            )
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_console())
            self._task = self._bar.add_task(label, total=total, completed=done, note='')
        self._start = self._printed = time.monotonic()
        self._points: deque[tuple[float, int]] = deque(maxlen=_RECENT + 1)

    def __enter__(self) -> 'Progress':
        self._within = Progress._open > 0
        Progress._open += 1
        if self._bar:
            self._bar.live.transient = self._within
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        Progress._open -= 1
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = '') -> None:
        """Show that `done` items are finished, and a short note, such as the loss."""
        done = max(done, self._first)
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        last = done >= self._total and not self._within and now - self._start >= _LINE_SECONDS
        if not self._enabled or (now - self._printed < _LINE_SECONDS and not last):
            return
        self._printed = now
        if done > self._first:
            self._points.append((now, done))
        line = f'{self._label}: {done}/{self._total} {self._unit}'
        if done >= self._total:
            line += f' in {duration(now - self._start)}'
        elif rate := recent_rate(self._points):
            line += f', {rate:.3g}/s, {duration((self._total - done) / rate)} left'
        print(f'{line}  {note}'.rstrip(), file=sys.stderr, flush=True)
