"""A few pairs of a file, the same ones each time."""

import heapq
from pathlib import Path

from data_pipelines.core.stage import Record, stream_records
from rlhi_jax.io.files import digest

PAIRS_TO_READ = 5


def some_of(path: Path, most: int) -> list[Record]:
    """At most so many of a file's pairs: the first by hash of their id."""
    return heapq.nsmallest(most, stream_records(path), key=lambda record: digest(record['id']))


def pairs_to_read(path: Path) -> list[dict[str, str]]:
    """A few pairs of a file, for people to judge."""
    return [
        dict(
            id=record['id'],
            persona=record['persona'],
            request=record['prompt'][-1]['content'],
            chosen=record['chosen'][-1]['content'],
            rejected=record['rejected'][-1]['content'],
        )
        for record in some_of(path, PAIRS_TO_READ)
    ]
