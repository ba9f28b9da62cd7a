"""Record files: files of JSON lines that are written atomically and read one record at a time."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.core.records import Record
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_file

RECORDS = 'records.jsonl'


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a record file atomically."""
    with new_file(path) as file:
        file.writelines(map(as_line, records))


def as_line(record: Record) -> bytes:
    """Return a record as one line of a record file."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True).encode() + b'\n'


def stream_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, one at a time.

    Raises:
      UserError: a line is damaged.
    """
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                raise UserError(f'{path}, line {number} is damaged: remove {path.parent} and rerun its stage') from None
            yield record


def load_records(path: Path) -> list[Record]:
    """Return all records of a file. They must fit in memory."""
    return list(stream_records(path))
