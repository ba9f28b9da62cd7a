"""Picks a few preference pairs from a file. The same pairs are picked every time."""

import heapq
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.core.record_files import stream_records
from data_pipelines.core.records import PreferenceRecord, Record
from rlhi_jax.io.files import digest

PAIRS_TO_READ = 5


def first_by_hash(path: Path, most: int) -> list[Record]:
    """Return at most `most` records from a file: those whose ids have the lowest hashes."""
    return _first(stream_records(path), most)


def first_pairs_by_hash(path: Path, most: int) -> list[PreferenceRecord]:
    """Return at most `most` preference pairs from a file, chosen as in `first_by_hash`; skip single rated replies."""
    return _first((record for record in stream_records(path) if 'chosen' in record), most)


def _first(records: Iterable[Record], most: int) -> list[Record]:
    return heapq.nsmallest(most, records, key=lambda record: digest(record['id']))


def pairs_file(folder: Path) -> Path | None:
    """Return the file with the training pairs in a loop's folder for an objective, or None if there is none yet.

    For an online run, this is the file of its last round.
    """
    files = [*sorted(folder.glob('run/rounds/*/pairs.jsonl'), reverse=True), folder / 'pairs' / 'train.jsonl']
    return next((path for path in files if path.exists()), None)


def pairs_to_read(path: Path) -> list[dict[str, str]]:
    """Return a few pairs from a file for a person to read. Each contains the request that the replies answer."""
    return [
        dict(
            id=record['id'],
            persona=record['persona'],
            request=record['prompt'][-1]['content'],
            chosen=record['chosen'][-1]['content'],
            rejected=record['rejected'][-1]['content'],
        )
        for record in first_pairs_by_hash(path, PAIRS_TO_READ)
    ]
