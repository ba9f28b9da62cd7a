"""Stores a teacher's answers in an SQLite file, together with the authors of the text that each request contains.

An author is stored as a user id or, if the user is unknown, as a conversation id (`data_pipelines.core.histories`).
`python -m data_pipelines.forget` uses the authors to remove the answers that were made from a user's text.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rlhi_jax.io.errors import UserError

_LEFT_BY_KILLED = ('-journal', '-wal', '-shm')  # suffixes of temporary files that SQLite writes beside the database


class RemovedAnswers(NamedTuple):
    """The numbers of answers that were removed from a cache.

    Attributes:
      theirs: answers to requests that contained only the text of forgotten authors.
      unknown: answers to requests whose authors are unknown. These requests may contain anybody's text.
    """

    theirs: int = 0
    unknown: int = 0


class AnswerCache:
    """Answers in an SQLite file, keyed by the digest of the request. Several processes may share the file.

    Files from older versions, which did not store authors, can also be used. In such a file, the authors of an answer
    are unknown until the same request is made again.

    Args:
      path: the file, which is created if it is missing; '' for a cache in memory.

    Raises:
      UserError: the file cannot be opened, or is not a cache.
    """

    def __init__(self, path: str):
        self._path = path
        with self._usable('set the key to a different file'):
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).touch(mode=0o600)
            self._file = sqlite3.connect(path or ':memory:', timeout=60, isolation_level=None)
            self._file.execute('CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, text TEXT, finished INT)')
            self._file.execute(
                'CREATE TABLE IF NOT EXISTS authors (author TEXT, request TEXT, PRIMARY KEY (author, request)) '
                'WITHOUT ROWID'
            )

    def get(self, name: str) -> tuple[str, bool] | None:
        """Return (answer, whether it is complete) for a request, or None if the cache does not contain the answer.

        Args:
          name: the digest of the request.
        """
        row = self._file.execute('SELECT text, finished FROM answers WHERE request = ?', (name,)).fetchone()
        return row and (row[0], bool(row[1]))

    def refuse_new(self) -> None:
        """Do nothing, because a cache accepts new answers. (`RecordedAnswers.refuse_new` raises UserError.)"""

    def put(self, name: str, text: str, finished: bool, authors: Iterable[str]) -> None:
        """Store an answer and its authors. If the answer is already stored, only add authors that are missing."""
        with self._transaction():
            self._file.execute('INSERT OR IGNORE INTO answers VALUES (?, ?, ?)', (name, text, finished))
            self._add_authors([name], authors)

    def add_authors(self, names: Iterable[str], authors: Iterable[str]) -> None:
        """Add authors to the stored answers of the requests whose digests are in `names`."""
        with self._transaction():
            self._add_authors(names, authors)

    def _add_authors(self, names: Iterable[str], authors: Iterable[str]) -> None:
        rows = ((author, name) for author in authors for name in names)
        self._file.executemany(
            'INSERT OR IGNORE INTO authors SELECT ?, request FROM answers WHERE request = ?', list(rows)
        )

    def authors(self) -> set[str]:
        """Return the known authors of all answers."""
        return {author for (author,) in self._file.execute('SELECT DISTINCT author FROM authors')}

    def forget(self, authors: Iterable[str]) -> RemovedAnswers:
        """Remove authors, all answers that have no other author, and all answers whose authors are unknown.

        No byte of these answers is left in the file. An interrupted call must be repeated.

        Raises:
          UserError: the file cannot be changed, for example because another process is using it.
        """
        without_author = 'FROM answers WHERE request NOT IN (SELECT request FROM authors)'
        with self._usable('check that no other process is using it'):
            self._file.execute('PRAGMA journal_mode = DELETE')  # another tool may have set a mode that keeps a log
            with self._transaction():
                ((unknown,),) = self._file.execute(f'SELECT count(*) {without_author}')
                self._file.executemany('DELETE FROM authors WHERE author = ?', [(author,) for author in authors])
                removed = self._file.execute(f'DELETE {without_author}').rowcount
            # SQLite's pages may contain old copies of their rows, which PRAGMA secure_delete does not overwrite.
            self._file.execute('VACUUM')
        return RemovedAnswers(removed - unknown, unknown)

    def close(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Apply several changes together: either all of them or none."""
        self._file.execute('BEGIN IMMEDIATE')
        with self._file:
            yield

    @contextlib.contextmanager
    def _usable(self, remedy: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise UserError(f'config.teacher.cache: cannot use {self._path} as a cache ({error}): {remedy}') from None


def authors_in(path: str) -> set[str]:
    """Return the known authors of the answers in a cache; a missing file is not created.

    Raises:
      UserError: the file is not a cache.
    """
    if not Path(path).exists():
        return set()
    with contextlib.closing(AnswerCache(path)) as cache:
        return cache.authors()


def forget_answers(path: str, authors: Collection[str]) -> RemovedAnswers:
    """Remove authors and their answers from a cache, as `AnswerCache.forget` does.

    If the file is missing, it is not created, but files that a killed process left beside it are removed.

    Raises:
      UserError: the file is not a cache, or cannot be changed.
    """
    if not Path(path).exists():
        for ending in _LEFT_BY_KILLED:
            Path(f'{path}{ending}').unlink(missing_ok=True)
        return RemovedAnswers()
    with contextlib.closing(AnswerCache(path)) as cache:
        return cache.forget(authors)
