"""A few pairs of a file, the same ones each time."""

import heapq
from pathlib import Path

from data_pipelines.core.record_files import stream_records
from data_pipelines.core.records import PreferenceRecord
from rlhi_jax.io.files import digest

PAIRS_TO_READ = 5


def first_by_hash(path: Path, most: int) -> list[PreferenceRecord]:
    """At most `most` of a file's pairs: the first by a hash of their id."""
    return heapq.nsmallest(most, stream_records(path), key=lambda record: digest(record['id']))


def pairs_to_read(path: Path) -> list[dict[str, str]]:
    """A few pairs of a file for a person to judge, with the request that they reply to."""
    return [
        dict(
            id=record['id'],
            persona=record['persona'],
            request=record['prompt'][-1]['content'],
            chosen=record['chosen'][-1]['content'],
            rejected=record['rejected'][-1]['content'],
        )
        for record in first_by_hash(path, PAIRS_TO_READ)
    ]
