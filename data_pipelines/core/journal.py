"""Results of long work by key, noted as they come: what a killed run has done is not done again."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest


def output_name(folder: Path) -> str:
    """The name of an output folder, of itself or of its temporary twin."""
    return folder.name.removeprefix('.').removesuffix('.tmp')


def work_folder(folder: Path) -> Path:
    """Where a stage that writes `folder` (or its temporary twin) keeps files of work that is not done."""
    folder = folder.resolve()
    return folder.with_name(f'.{output_name(folder)}.journal')


def journal_name(identity: Any) -> str:
    """The name of a journal, so that work with one setting changed does not do away with what was done before."""
    return f'{digest(identity)[:16]}.sqlite'


class Journal:
    """An SQLite file in a stage's folder of work: an entry is on disk once added, and in memory only when asked for.

    Keys are anything JSON can write, such as ('reply', 'c1/2', 0): none is read for another. What is there of other
    work, or no journal at all, is discarded.

    Raises:
      UserError: the file cannot be opened now, though it may be good.
    """

    def __init__(self, path: Path, identity: Any):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        of, files = digest(identity), (path, path.with_name(f'{path.name}-journal'))
        new = not any(file.exists() for file in files)
        self._file, known = _open(path)
        if known != [(of,)]:
            if not new:
                self.close()
                for file in files:
                    file.unlink(missing_ok=True)
                self._file, _ = _open(path)
            self._file.execute('INSERT INTO work VALUES (?)', (of,))

    def __contains__(self, key: Any) -> bool:
        return self._file.execute('SELECT 1 FROM results WHERE key = ?', (json.dumps(key),)).fetchone() is not None

    def __getitem__(self, key: Any) -> Any:
        row = self._file.execute('SELECT value FROM results WHERE key = ?', (json.dumps(key),)).fetchone()
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def add(self, key: Any, value: Any) -> None:
        """Note one result; it is on disk when this returns."""
        self._file.execute('INSERT INTO results VALUES (?, ?)', (json.dumps(key), json.dumps(value)))

    def total(self, field: str) -> int:
        """The sum of a field of all results that are objects."""
        objects = "CASE WHEN json_valid(value) THEN json_type(value) END = 'object'"  # NaN is no JSON to SQLite
        return int(
            self._file.execute(f'SELECT total(value ->> ?) FROM results WHERE {objects}', (field,)).fetchone()[0]
        )

    def close(self) -> None:
        self._file.close()


def _open(path: Path) -> tuple[sqlite3.Connection, list[tuple[str]]]:
    """A file, and the digests of the work that it is of: one, or none if it is new or no journal."""
    try:
        file = sqlite3.connect(path, isolation_level=None)
        try:
            file.execute('PRAGMA journal_mode = TRUNCATE')  # unlike WAL, good for shared file systems
            file.execute('PRAGMA synchronous = FULL')  # each entry is synced
            file.execute('CREATE TABLE IF NOT EXISTS work (identity TEXT)')
            file.execute('CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT)')
            return file, file.execute('SELECT identity FROM work').fetchall()
        except sqlite3.OperationalError:
            file.close()
            raise
        except sqlite3.DatabaseError:
            return file, []
    except sqlite3.OperationalError as error:
        raise UserError(
            f'{path} cannot be opened ({error}): see that nothing else has it open and that its disk is well, then run '
            'again'
        ) from None
