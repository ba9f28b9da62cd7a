"""Shows the progress of a long-running job: a live bar on a terminal, or a line every few seconds elsewhere."""

import functools
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_SECONDS = 10.0


@functools.cache
def _console() -> Console:
    """Return the console that all bars share; with a shared console, nested bars appear below each other."""
    return Console(stderr=True)


class Progress:
    """A context manager that shows how much of a total is done. With `enabled=False`, it shows nothing.

    When a nested `Progress` ends, its bar disappears from the terminal. Without a terminal, a nested `Progress` prints
    no final line.
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
        """Set the count to `done` and show a short note, such as the loss."""
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        last = done >= self._total and not self._within
        if not self._enabled or (now - self._printed < _LINE_SECONDS and not last):
            return
        self._printed = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = (self._total - done) / rate if rate else float('inf') if done < self._total else 0
        eta = time.strftime('%H:%M:%S', time.gmtime(left)) if left < 86400 else f'{left / 86400:.1f} days'
        line = f'{self._label}: {done}/{self._total} {self._unit}, {rate:.3g}/s, ETA {eta}  {note}'
        print(line.rstrip(), file=sys.stderr, flush=True)
