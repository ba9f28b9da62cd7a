"""Errors of the machine become one line; held-out pairs without personas can be evaluated."""

import errno
import os
import sqlite3

import pytest

from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import Interaction, Message, Pair
from rlhi_jax.evaluation.conditions import views
from rlhi_jax.io.errors import UserError, fault_of_the_machine


def wrapped(error: BaseException) -> BaseException:
    """The error as the cause of a library's own exception."""
    try:
        try:
            raise error
        except BaseException as cause:
            raise RuntimeError('write failed') from cause
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'full/x'),
            'No space left on device (full/x): free some space',
        ),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), 'Read-only file system: use another folder'),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'x'), 'Permission denied (x): use another folder'),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 'Too many open files: raise the limit with `ulimit -n`'),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), 'File too large: raise the limit with `ulimit -f`'),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 'Disk quota exceeded: free some space'),
        (sqlite3.OperationalError('database or disk is full'), 'disk is full: free some space'),
        (ValueError('RESOURCE_EXHAUSTED: write: No space left on device'), 'No space left on device: free some space'),
    ],
)
def test_errors_of_the_machine_are_one_line(error, words):
    for each in (error, wrapped(error)):
        assert fault_of_the_machine(each).startswith(words)
    for other in (ValueError('no such thing'), KeyError('x'), UserError('x'), OSError(errno.ENOENT, 'missing')):
        assert fault_of_the_machine(other) == ''


def test_held_out_pairs_without_personas_have_one_condition(tmp_path):
    messages = (Message(-1, 'user', 'Hi'), Message(0, 'assistant', 'a'), Message(0, 'assistant', 'b'))
    trees = [Interaction(str(n), messages, (Pair(f'p{n}', 0, 1, 2),)) for n in range(5)]
    (tmp_path / 'shards').mkdir()
    write_shards(iter(trees), tmp_path / 'shards', trees_per_shard=10, manifest={})
    found = views(Shards(tmp_path / 'shards'), max_trees=3, seed=0)
    assert set(found) == {'empty'} and len(found['empty']) == 3
