"""The time that each part of a round takes, recorded in times.jsonl."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhi_jax.io.files import complete_lines

TIMES = 'times.jsonl'


@contextmanager
def timed(workdir: Path, part: str) -> Iterator[None]:
    """Time a part, and append its duration to times.jsonl when it ends or fails.

    If the process is killed, nothing is appended.
    """
    start = time.monotonic()
    try:
        yield
    finally:
        with open(workdir / TIMES, 'a', encoding='utf-8') as file:
            file.write(json.dumps(dict(part=part, seconds=round(time.monotonic() - start, 1))) + '\n')


def time_spent(workdir: Path) -> dict[str, float]:
    """Return the seconds that each part took, summed over all restarts."""
    seconds: Counter = Counter()
    for line in complete_lines(workdir / TIMES):
        with suppress(ValueError):  # a process was killed while it wrote the line
            record = json.loads(line)
            seconds[record['part']] += record['seconds']
    return dict(seconds)


def times_in_words(workdir: Path) -> str:
    """Return a line with the total minutes of a round and of its four longest parts, including all restarts."""
    seconds = time_spent(workdir)
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:4]
    parts = ', '.join(f'{part} {seconds[part] / 60:.1f}' for part in longest)
    return f'Minutes, over all restarts: {sum(seconds.values()) / 60:.1f}, of which {parts}'
