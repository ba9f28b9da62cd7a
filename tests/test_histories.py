"""Conversations read side by side with other records, in blocks and passes: against all of it in memory at once."""

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from talks import config

from data_pipelines.core import stage
from data_pipelines.core.histories import authors, side_by_side
from data_pipelines.core.journal import Journal, work_folder
from data_pipelines.core.stage import in_blocks, in_passes, write_records
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder

# Conversations in ingest's order, and which turns of them two files have records of.
HISTORIES = st.lists(
    st.tuples(st.sampled_from(['', 'u', 'v', 'w']), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))), max_size=12
).map(lambda found: sorted(found, key=lambda each: (not each[0], each[0])))


def written(folder, found):
    """A config and two files of records of these conversations."""
    talks = [dict(id=f'c{n}/x', user_id=user, messages=[]) for n, (user, *_) in enumerate(found)]
    files = [
        [dict(id=f'c{n}/x/{place}', file=file) for n, each in enumerate(found) for place in sorted(each[file])]
        for file in (1, 2)
    ]
    (folder / 'manifest.json').write_text('{}')
    write_records(folder / 'records.jsonl', talks)
    paths = [folder / 'one.jsonl', folder / 'two.jsonl']
    for path, records in zip(paths, files, strict=True):
        write_records(path, records)
    return config(folder, conversations=str(folder)), paths, talks, files


@given(HISTORIES)
def test_each_conversation_comes_with_its_records(tmp_path_factory, found):
    c, paths, talks, files = written(tmp_path_factory.mktemp('told'), found)
    expected = [
        (talk, [[record for record in records if record['id'].startswith(f'{talk["id"]}/')] for records in files])
        for talk in talks
    ]
    assert list(side_by_side(c, *paths)) == expected
    by_author = defaultdict(lambda: ([], [], []))
    for talk, records in expected:
        for own, more in zip(by_author[talk['user_id'] or talk['id']], ([talk], *records), strict=True):
            own += more
    told = [(list(author.talks.values()), *author.of) for author in authors(c, *paths)]
    assert told == list(by_author.values())


@pytest.mark.parametrize('names', [['c1/2', 'c0/2'], ['c0/2', 'x/2'], ['c0/2', 'c1/2', 'c0/4']])
def test_records_in_another_order_are_refused(tmp_path, names):
    c, paths, *_ = written(tmp_path, [('u', (), ()), ('u', (), ())])
    write_records(tmp_path / 'records.jsonl', [dict(id='c0'), dict(id='c1')])
    write_records(paths[0], [dict(id=name) for name in names])
    with pytest.raises(UserError, match='one.jsonl: its records from .* run its stage again'):
        list(side_by_side(c, paths[0]))


@pytest.mark.parametrize('users', ['vu', 'uvu', ' u'])
def test_users_in_another_order_are_refused(tmp_path, users):
    c, *_ = written(tmp_path, [(user.strip(), (), ()) for user in users])
    with pytest.raises(UserError, match='config.data.conversations: those of user .* run ingest again'):
        list(authors(c))


def test_blocks_hold_all_in_order():
    for size, number in itertools.product((1, 3, 7), (0, 1, 6, 7, 8)):
        blocks = list(in_blocks(iter(range(number)), size))
        assert sum(blocks, []) == list(range(number)) and all(len(block) == size for block in blocks[:-1])


def test_passes_ask_one_model_at_a_time_and_each_item_once():
    asked, known = [], {}

    def source(counts):
        for item in range(5):
            counts['read'] += 1
            yield item
        asked.append('|')

    def step(name, items, counts):
        for block in in_blocks(items, 2):
            for item in block:
                if (name, item) not in known:
                    asked.append(name)
                    known[name, item] = item % 3 != 0 or name == 'b'
                if known[name, item]:
                    yield item
                else:
                    counts[f'dropped_{name}'] += 1

    counts = Counter()
    steps = [lambda items, counts, name=name: step(name, items, counts) for name in 'abc']
    assert list(in_passes(source, steps, counts)) == [1, 2, 4]
    assert ''.join(asked) == '|aaaa|abb|bcc|c'
    assert counts == dict(read=5, dropped_a=2)


def test_a_task_keeps_one_thing(tmp_path):
    made = []
    task = stage.Task(None, tmp_path, 'x', 'made')
    assert [task.keep(key, lambda key=key: made.append(key) or key.upper()) for key in 'aabba'] == list('AABBA')
    assert made == list('aba')


KILLED = """
import os, sys, pathlib
from data_pipelines.core.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]), 'work')
for number in range(10 ** 6):
    journal.add(f'key {number}', dict(tokens=number, text='ä\\ud800' * 50))
    os.write(1, b'%d\\n' % number)
"""


def test_a_killed_journal_holds_all_that_was_noted(tmp_path):
    path, rng = tmp_path / 'work' / 'journal.sqlite', random.Random(0)
    child = subprocess.Popen([sys.executable, '-c', KILLED, path], stdout=subprocess.PIPE, cwd=tiny.ROOT)
    for _ in range(rng.randrange(20, 60)):
        last = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    last = max(last, *map(int, child.stdout.read().split() or [0]))
    child.wait()
    journal = Journal(path, 'work')
    assert all(journal[f'key {number}']['tokens'] == number for number in range(last + 1))
    assert 'key x' not in journal and path.parent.stat().st_mode & 0o777 == 0o700
    noted = last + 1 + (f'key {last + 1}' in journal)
    journal.add('a list', ['text', True])
    journal.add('no number', [float('nan')])
    assert journal.total('tokens') == sum(range(noted)) and journal['a list'] == ['text', True]
    journal.close()
    assert 'key 0' not in Journal(path, 'other work')
    path.write_bytes(b'no journal' * 1000)
    assert 'key 0' not in Journal(path, 'work')


def test_a_journal_that_another_program_has_open_is_kept(tmp_path):
    path = tmp_path / 'work' / 'journal.sqlite'
    journal = Journal(path, 'work')
    journal.add('key', 'what was paid for')
    journal.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute('PRAGMA locking_mode = EXCLUSIVE')
        other.execute('BEGIN EXCLUSIVE')
        with pytest.raises(UserError, match='journal.sqlite cannot be opened'):
            Journal(path, 'work')
    assert Journal(path, 'work')['key'] == 'what was paid for'


def answering(name: str = 'rewrites') -> stage.Stage:
    """A stage that notes two answers, and then waits for its config to be good."""

    def work(task):
        for number in range(2):
            if number not in task.journal:
                task.journal.add(number, f'paid for under {task.config.seed}')
        if task.config.seed < 0:
            raise UserError('so')
        return task.write([dict(said=task.journal[0])], Counter())

    made = stage.Stage(name, 1, work, 'data.rewrites', lambda config: dict(seed=abs(config.seed)))
    return made


def test_a_setting_changed_and_changed_back_loses_no_answers(tmp_path):
    c, made = config(tmp_path, rewrites=str(tmp_path / 'rewrites')), answering()
    for seed in (-1, -2):
        c.seed = seed
        with pytest.raises(UserError, match='so'):
            made.run(c)
    c.seed = 1
    made.run(c)
    assert stage.load_records(tmp_path / 'rewrites' / 'records.jsonl') == [dict(said='paid for under -1')]
    assert not work_folder(tmp_path / 'rewrites').exists()


def test_who_finds_a_folder_up_to_date_leaves_the_work_of_who_makes_it_again(tmp_path):
    c, made = config(tmp_path, rewrites=str(tmp_path / 'rewrites')), answering()
    made.run(c)
    with new_folder(tmp_path / 'rewrites', overwrite=True) as temporary:
        task = stage.Task(c, temporary, 'x', 'made')
        task.journal.add('key', 'paid for')
        made.run(c)
        assert task.journal['key'] == 'paid for'
        task.journal.add('another', 'still here')
        task.close()
        write_records(temporary / 'manifest.json', [dict(made_from=dict(seed=0, version=1), counts={})])
    made.run(c)
    assert not work_folder(tmp_path / 'rewrites').exists()


def test_a_folder_of_another_stage_and_a_damaged_record_are_named(tmp_path):
    c = config(tmp_path, rewrites=str(tmp_path / 'rewrites'))
    answering().run(c)
    c.data.personas = c.data.rewrites
    with pytest.raises(UserError, match="data.personas: .* is of the stage 'rewrites', not of 'personas'"):
        stage.input_folder(c, 'personas')
    path = tmp_path / 'rewrites' / 'records.jsonl'
    path.write_bytes(path.read_bytes() + b'{"said": "half')
    with pytest.raises(
        UserError, match=r'records.jsonl, line 2 is damaged: remove \S+rewrites and run its stage again'
    ):
        list(stage.read_records(c, 'rewrites'))


@pytest.mark.parametrize('fails', [False, True])
def test_a_stage_that_has_ended_leaves_no_file_open(tmp_path, fails):
    tasks = []  # kept here: nothing is closed by its going

    def work(task):
        tasks.append(task)
        task.journal.add('key', 'value')
        if fails:
            raise UserError('so')
        return task.write_manifest(Counter())

    made = stage.Stage('made', 1, work, 'data.rewrites', lambda config: {})
    with pytest.raises(UserError) if fails else contextlib.nullcontext():
        made.run(config(tmp_path, rewrites=str(tmp_path / 'rewrites')))
    opened = [tiny.Path(f'/proc/self/fd/{number}') for number in os.listdir('/proc/self/fd')]
    assert tasks and not [path for path in opened if str(tmp_path) in str(path.resolve())]
