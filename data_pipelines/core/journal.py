"""Journals save each result of a long-running job to disk as soon as it is available.

A run that was killed can then resume without repeating any work.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest


def output_name(folder: Path) -> str:
    """Return the name of an output folder, given the path of that folder or of its temporary folder."""
    return folder.name.removeprefix('.').removesuffix('.tmp')


def work_folder(folder: Path) -> Path:
    """Return the folder for a stage's unfinished work, given the path of its output folder or temporary folder."""
    folder = folder.resolve()
    return folder.with_name(f'.{output_name(folder)}.journal')


def journal_name(made_from: Any) -> str:
    """Return a journal's file name. Runs with different settings use separate journals."""
    return f'{digest(made_from)[:16]}.sqlite'


class Journal:
    """An SQLite file of results. Each result is on disk as soon as it is added, and is not kept in memory.

    A key is any value that JSON can represent, such as ('reply', 'c1/2', 0). `made_from` is everything that the results
    depend on. An existing file is discarded if it is not a journal or was written with a different `made_from`.

    Raises:
      UserError: the file cannot be opened, for example because another process is using it.
    """

    def __init__(self, path: Path, made_from: Any):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        work, files = digest(made_from), (path, path.with_name(f'{path.name}-journal'))
        new = not any(file.exists() for file in files)
        self._file, stored = _open(path)
        if stored != [(work,)]:
            if not new:
                self.close()
                for file in files:
                    file.unlink(missing_ok=True)
                self._file, _ = _open(path)
            self._file.execute('INSERT INTO work VALUES (?)', (work,))

    def __contains__(self, key: Any) -> bool:
        return self._file.execute('SELECT 1 FROM results WHERE key = ?', (json.dumps(key),)).fetchone() is not None

    def __getitem__(self, key: Any) -> Any:
        row = self._file.execute('SELECT value FROM results WHERE key = ?', (json.dumps(key),)).fetchone()
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def add(self, key: Any, value: Any) -> None:
        """Add one result; it is on disk by the time the method returns."""
        self._file.execute('INSERT INTO results VALUES (?, ?)', (json.dumps(key), json.dumps(value)))

    def total(self, field: str) -> int:
        """Return the sum of a field over all results that are JSON objects."""
        objects = "CASE WHEN json_valid(value) THEN json_type(value) END = 'object'"  # SQLite rejects NaN as JSON
        return int(
            self._file.execute(f'SELECT total(value ->> ?) FROM results WHERE {objects}', (field,)).fetchone()[0]
        )

    def close(self) -> None:
        self._file.close()


def _open(path: Path) -> tuple[sqlite3.Connection, list[tuple[str]]]:
    """Open an SQLite file. Return the connection and a list that contains the digest of the journal's `made_from`.

    The list is empty if the file is new or is not a journal.
    """
    try:
        file = sqlite3.connect(path, isolation_level=None)
        try:
            file.execute('PRAGMA journal_mode = TRUNCATE')  # unlike WAL, this works on shared file systems
            file.execute('PRAGMA synchronous = FULL')  # every entry is synced to disk
            file.execute('CREATE TABLE IF NOT EXISTS work (identity TEXT)')
            file.execute('CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT)')
            return file, file.execute('SELECT identity FROM work').fetchall()
        except sqlite3.OperationalError:
            file.close()
            raise
        except sqlite3.DatabaseError:
            return file, []
    except sqlite3.OperationalError as error:
        raise UserError(f'{path} cannot be opened ({error}): check that no other process is using it') from None
