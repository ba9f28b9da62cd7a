"""The cache of a teacher's answers knows whose text each was made of, and can forget these people to the last byte."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import tiny

from data_pipelines.teacher.cache import AnswerCache, RemovedAnswers, authors_in, forget_answers
from rlhi_jax.io.errors import UserError

ANSWERS = 400  # enough for SQLite to split pages, which leaves copies of rows behind
WRITE_AND_DIE = """
import os, signal, sqlite3
file = sqlite3.connect({path!r}, isolation_level=None)
file.execute('PRAGMA journal_mode = {mode}')
file.execute('PRAGMA cache_size = 1')
file.execute('BEGIN')
file.execute("UPDATE answers SET text = text || 'more'")
{end}
os.kill(os.getpid(), signal.SIGKILL)
"""
FORGET_AND_DIE = """
import os, signal, sqlite3
from data_pipelines.teacher import cache

class Dying(sqlite3.Connection):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.set_trace_callback(self.trace)

    def trace(self, statement):
        if statement.startswith({statement!r}) and {inside}:
            self.set_progress_handler(lambda: os.kill(os.getpid(), signal.SIGKILL), 500)
        elif statement.startswith({statement!r}):
            os.kill(os.getpid(), signal.SIGKILL)

connect = sqlite3.connect
cache.sqlite3.connect = lambda *given, **named: connect(*given, **named, factory=Dying)
cache.forget_answers({path!r}, ['zebra', 'c7'])
"""


def texts(path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as file:
        return dict(file.execute('SELECT request, text FROM answers'))


def holds(path, word: bytes) -> list[str]:
    """The names of the files beside a cache, and of the cache, that contain a word."""
    return [each.name for each in path.parent.iterdir() if word in each.read_bytes()]


@pytest.fixture
def path(tmp_path):
    """A cache with answers by 'zebra', by the unknown author of 'c7', and by others; each answer names its author.

    It was written by an SQLite that leaves deleted data in place, as most builds do.
    """
    path, draw = tmp_path / 'cache', random.Random(0)
    with closing(AnswerCache(str(path))) as cache:
        cache._file.execute('PRAGMA secure_delete = OFF')
        cache._file.execute('PRAGMA synchronous = OFF')
        for _ in range(ANSWERS):
            author = draw.choice(['zebra', 'horse', 'mouse', 'c7'])
            cache.put(f'{draw.getrandbits(128):032x}', f'{author} ' + 'x' * draw.randrange(900), True, [author])
    return path


def assert_forgotten(path, before):
    """The answers of two authors are in no byte, and all others are as before."""
    assert not holds(path, b'zebra') and not holds(path, b'c7 ') and not list(path.parent.glob('cache-*'))
    assert texts(path) == {name: text for name, text in before.items() if text.startswith(('horse', 'mouse'))}
    assert authors_in(str(path)) == {'horse', 'mouse'} and path.stat().st_mode & 0o777 == 0o600


def test_forgotten_authors_are_in_no_byte(path):
    before = texts(path)
    theirs = sum(text.startswith(('zebra', 'c7')) for text in before.values())
    assert 100 < theirs < ANSWERS and holds(path, b'zebra')
    assert forget_answers(str(path), {'zebra', 'c7', 'nobody'}) == RemovedAnswers(theirs, 0)
    assert_forgotten(path, before)
    assert forget_answers(str(path), {'zebra'}) == RemovedAnswers(0, 0)


def test_an_answer_of_several_authors_stays_until_the_last_is_forgotten(tmp_path):
    path = str(tmp_path / 'cache')
    with closing(AnswerCache(path)) as cache:
        cache.put('shared', 'by both', True, ['zebra', 'horse'])
        cache.put('hit', 'by zebra first', False, ['zebra'])
        cache.put('hit', 'not stored again', True, ['horse', 'zebra'])
        cache.put('credited', 'by zebra first', True, ['zebra'])
        cache.add_authors(['credited', 'not stored'], ['horse', 'mouse'])
        assert cache.get('hit') == ('by zebra first', False)
    assert forget_answers(path, ['zebra']) == RemovedAnswers(0, 0) and len(texts(path)) == 3
    assert b'zebra\x00' not in (tmp_path / 'cache').read_bytes() and authors_in(path) == {'horse', 'mouse'}
    assert forget_answers(path, ['horse']) == RemovedAnswers(2, 0) and list(texts(path)) == ['credited']
    assert forget_answers(path, ['mouse']) == RemovedAnswers(1, 0) and not texts(path)


@pytest.mark.parametrize('used', [False, True])
def test_answers_of_an_older_version_go_unless_they_were_used(tmp_path, used):
    path = tmp_path / 'cache'
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute('CREATE TABLE answers (request TEXT PRIMARY KEY, text TEXT, finished INT)')
        old.executemany('INSERT INTO answers VALUES (?, ?, 1)', [('one', 'zebra'), ('two', 'horse')])
    with closing(AnswerCache(str(path))) as cache:
        assert cache.get('one') == ('zebra', True) and cache.get('two') == ('horse', True) and not cache.authors()
        if used:
            cache.put('two', *cache.get('two'), ['h'])
    assert forget_answers(str(path), ['z']) == RemovedAnswers(0, 1 if used else 2)
    assert texts(path) == (dict(two='horse') if used else {}) and not holds(path, b'zebra')


STATEMENTS = ['BEGIN', 'DELETE FROM authors', 'DELETE FROM answers', 'COMMIT', 'VACUUM']


@pytest.mark.parametrize(('statement', 'inside'), [*((each, False) for each in STATEMENTS), ('VACUUM', True)])
def test_a_call_that_was_killed_is_repeated(path, statement, inside):
    before = texts(path)
    code = FORGET_AND_DIE.format(path=str(path), statement=statement, inside=inside)
    killed = subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, env=os.environ | dict(PYTHONPATH='.'))
    assert killed.returncode == -signal.SIGKILL
    forget_answers(str(path), ['zebra', 'c7'])
    assert_forgotten(path, before)


@pytest.mark.parametrize('mode', ['DELETE', 'PERSIST', 'WAL'])
@pytest.mark.parametrize('committed', [False, True])
def test_files_that_a_killed_process_left_beside_the_cache(path, mode, committed):
    before = texts(path)
    code = WRITE_AND_DIE.format(path=str(path), mode=mode, end="file.execute('COMMIT')" if committed else '')
    assert subprocess.run([sys.executable, '-c', code]).returncode == -signal.SIGKILL
    if (mode, committed) != ('DELETE', True):
        assert b'zebra' in b''.join(each.read_bytes() for each in path.parent.glob('cache-*'))
    forget_answers(str(path), ['zebra', 'c7'])
    assert_forgotten(path, {name: text + 'more' * committed for name, text in before.items()})


def test_a_missing_cache_is_not_made(tmp_path):
    path = tmp_path / 'cache'
    for ending in ('-journal', '-wal', '-shm'):
        path.with_name(f'cache{ending}').write_text('zebra')
    assert authors_in(str(path)) == set() and len(holds(path, b'zebra')) == 3
    assert forget_answers(str(path), ['zebra']) == RemovedAnswers(0, 0) and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_used_or_changed(path, monkeypatch):
    before, connect = path.read_bytes(), sqlite3.connect
    with closing(connect(path, isolation_level=None)) as other:
        other.execute('BEGIN EXCLUSIVE')
        monkeypatch.setattr(sqlite3, 'connect', lambda name, **given: connect(name, **given | dict(timeout=0.1)))
        with pytest.raises(UserError, match='config.teacher.cache: cannot use .* as a cache .*locked'):
            forget_answers(str(path), ['zebra'])
        other.execute('ROLLBACK')
        other.execute('BEGIN IMMEDIATE')
        with pytest.raises(UserError, match='locked.*check that no other process is using it'):
            forget_answers(str(path), ['zebra'])
    assert path.read_bytes() == before
    path.write_text(json.dumps('zebra') * 999)
    with pytest.raises(UserError, match='cannot use .* as a cache .*: set the key to a different file'):
        forget_answers(str(path), ['zebra'])
