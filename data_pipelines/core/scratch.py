"""Opens scratch databases: SQLite files that keep a stage's intermediate data on disk."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_database(path: Path | None) -> Iterator[sqlite3.Connection]:
    """Open an empty database in a file, which is removed at the end. If the path is None, the database is in memory."""
    if path:
        path.unlink(missing_ok=True)  # an interrupted run starts over
    try:
        with contextlib.closing(sqlite3.connect(path or ':memory:', isolation_level=None)) as database:
            database.execute('PRAGMA journal_mode = OFF')
            database.execute('PRAGMA synchronous = OFF')
            yield database
    finally:
        if path:
            path.unlink(missing_ok=True)
