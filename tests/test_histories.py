"""Conversations read beside other records, and in blocks and passes, against everything in memory; journals; stages."""

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
from raw_conversations import config

from data_pipelines.core.histories import authors, side_by_side
from data_pipelines.core.inputs import input_folder, read_records
from data_pipelines.core.journal import Journal, work_folder
from data_pipelines.core.passes import in_blocks, in_passes
from data_pipelines.core.record_files import load_records, write_records
from data_pipelines.core.stage import Stage, Task
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder

# Conversations in ingest's order, with the turns that two other files have records of.
HISTORIES = st.lists(
    st.tuples(st.sampled_from(['', 'u', 'v', 'w']), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))), max_size=12
).map(lambda histories: sorted(histories, key=lambda each: (not each[0], each[0])))


def written(folder, histories):
    """A config and two files of records of these conversations."""
    conversations = [dict(id=f'c{n}/x', user_id=user, messages=[]) for n, (user, *_) in enumerate(histories)]
    files = [
        [dict(id=f'c{n}/x/{turn}', file=file) for n, each in enumerate(histories) for turn in sorted(each[file])]
        for file in (1, 2)
    ]
    (folder / 'manifest.json').write_text('{}')
    write_records(folder / 'records.jsonl', conversations)
    paths = [folder / 'one.jsonl', folder / 'two.jsonl']
    for path, records in zip(paths, files, strict=True):
        write_records(path, records)
    return config(folder, conversations=str(folder)), paths, conversations, files


@given(HISTORIES)
def test_each_conversation_comes_with_its_records(tmp_path_factory, histories):
    c, paths, conversations, files = written(tmp_path_factory.mktemp('histories'), histories)
    expected = [
        (each, [[record for record in records if record['id'].startswith(f'{each["id"]}/')] for records in files])
        for each in conversations
    ]
    assert list(side_by_side(c, *paths)) == expected
    by_author = defaultdict(lambda: ([], [], []))
    for each, records in expected:
        for of_author, more in zip(by_author[each['user_id'] or each['id']], ([each], *records), strict=True):
            of_author += more
    told = [(list(author.conversations.values()), *author.records) for author in authors(c, *paths)]
    assert told == list(by_author.values())


@pytest.mark.parametrize('names', [['c1/2', 'c0/2'], ['c0/2', 'x/2'], ['c0/2', 'c1/2', 'c0/4']])
def test_records_in_another_order_are_refused(tmp_path, names):
    c, paths, *_ = written(tmp_path, [('u', (), ()), ('u', (), ())])
    write_records(tmp_path / 'records.jsonl', [dict(id='c0'), dict(id='c1')])
    write_records(paths[0], [dict(id=name) for name in names])
    with pytest.raises(
        UserError,
        match='one.jsonl: the records from conversation .* onwards are not in the order of .*: rerun the stage',
    ):
        list(side_by_side(c, paths[0]))


@pytest.mark.parametrize('users', ['vu', 'uvu', ' u'])
def test_users_in_another_order_are_refused(tmp_path, users):
    c, *_ = written(tmp_path, [(user.strip(), (), ()) for user in users])
    with pytest.raises(UserError, match='config.data.conversations is not sorted by user .*: rerun the .ingest. stage'):
        list(authors(c))


def test_blocks_contain_all_items_in_order():
    for size, number in itertools.product((1, 3, 7), (0, 1, 6, 7, 8)):
        blocks = list(in_blocks(iter(range(number)), size))
        assert sum(blocks, []) == list(range(number)) and all(len(block) == size for block in blocks[:-1])


def test_passes_ask_one_model_at_a_time_and_once_per_item():
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


KILLED = """
import os, sys, pathlib
from data_pipelines.core.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]), 'work')
for number in range(10 ** 6):
    journal.add(f'key {number}', dict(tokens=number, text='ä\\ud800' * 50))
    os.write(1, b'%d\\n' % number)
"""


def test_the_journal_of_a_killed_process_keeps_every_entry(tmp_path):
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


def test_a_journal_open_in_another_program_is_kept(tmp_path):
    path = tmp_path / 'work' / 'journal.sqlite'
    journal = Journal(path, 'work')
    journal.add('key', 'paid for')
    journal.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute('PRAGMA locking_mode = EXCLUSIVE')
        other.execute('BEGIN EXCLUSIVE')
        with pytest.raises(UserError, match='journal.sqlite cannot be opened'):
            Journal(path, 'work')
    assert Journal(path, 'work')['key'] == 'paid for'


def answering(name: str = 'rewrites') -> Stage:
    """A stage that notes two answers, and then fails while its config is bad."""

    def work(task):
        for number in range(2):
            if number not in task.journal:
                task.journal.add(number, f'paid for under {task.config.seed}')
        if task.config.seed < 0:
            raise UserError('so')
        return task.write([dict(text=task.journal[0])], Counter())

    return Stage(name, 1, work, 'data.rewrites', lambda config: dict(seed=abs(config.seed)))


def test_a_setting_changed_and_changed_back_loses_no_answers(tmp_path):
    c, made = config(tmp_path, rewrites=str(tmp_path / 'rewrites')), answering()
    for seed in (-1, -2):
        c.seed = seed
        with pytest.raises(UserError, match='so'):
            made.run(c)
    c.seed = 1
    made.run(c)
    assert load_records(tmp_path / 'rewrites' / 'records.jsonl') == [dict(text='paid for under -1')]
    assert not work_folder(tmp_path / 'rewrites').exists()


def test_finding_a_folder_up_to_date_keeps_the_work_of_a_run_that_remakes_it(tmp_path):
    c, made = config(tmp_path, rewrites=str(tmp_path / 'rewrites')), answering()
    made.run(c)
    with new_folder(tmp_path / 'rewrites', overwrite=True) as temporary:
        task = Task(c, temporary, 'x', 'made')
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
    with pytest.raises(UserError, match="data.personas: .* was made by the 'rewrites' stage, not by 'personas'"):
        input_folder(c, 'personas')
    path = tmp_path / 'rewrites' / 'records.jsonl'
    path.write_bytes(path.read_bytes() + b'{"text": "half')
    with pytest.raises(UserError, match=r'records.jsonl, line 2 is damaged: remove \S+rewrites and rerun its stage'):
        list(read_records(c, 'rewrites'))


@pytest.mark.parametrize('fails', [False, True])
def test_a_stage_that_has_ended_leaves_no_file_open(tmp_path, fails):
    tasks = []  # so that garbage collection closes nothing

    def work(task):
        tasks.append(task)
        task.journal.add('key', 'value')
        if fails:
            raise UserError('so')
        return task.write_manifest(Counter())

    made = Stage('made', 1, work, 'data.rewrites', lambda config: {})
    with pytest.raises(UserError) if fails else contextlib.nullcontext():
        made.run(config(tmp_path, rewrites=str(tmp_path / 'rewrites')))
    opened = [tiny.Path(f'/proc/self/fd/{number}') for number in os.listdir('/proc/self/fd')]
    assert tasks and not [path for path in opened if str(tmp_path) in str(path.resolve())]
