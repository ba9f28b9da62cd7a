"""Raw conversations → records: files as published, mutated, cut into chunks and killed."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from benchmarks.mutations import mutated
from raw_conversations import TURNS, config, nothing_is_lost, output, raw_conversation, records, write_lines

from data_pipelines import ingest
from data_pipelines.privacy.user_keys import read_opt_out, read_salt
from data_pipelines.raw import files as raw_files
from data_pipelines.raw import scan
from rlhi_jax.io.errors import UserError


@pytest.mark.parametrize('kind', ['jsonl', 'jsonl.gz', 'parquet'])
def test_ingest_reads_what_is_published_and_counts_the_rest(tmp_path, kind):
    good = [
        raw_conversation('a', 'How do bees fly?', 'With wings.', 'Shorter!'),
        raw_conversation('b', 'What is tea?', 'A drink.', user='v'),
    ]
    bad = [
        raw_conversation('c', 'Hi', 'You!', toxic=True),
        raw_conversation('d', 'Only me'),
        raw_conversation('a', 'How do bees fly?', 'With wings.', 'Shorter!'),
        raw_conversation('e', 'Empty', '  '),
        raw_conversation('f', 'One', 'Two') | dict(conversation=[dict(role='assistant', content='I begin')]),
    ]
    path = tmp_path / f'raw.{kind}'
    if kind == 'parquet':
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(good + bad), path)
    else:
        text = '\n'.join(map(json.dumps, good + bad)) + '\nnot json\n'
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith('gz') else text.encode())
    c = config(tmp_path, raw=str(path))
    counts = ingest.STAGE.run(c)
    dropped = {name: count for name, count in counts.items() if name.startswith('dropped')}
    expected = dict(toxic=1, no_reply=1, seen_before=1, empty_message=1, no_user_turn=1)
    expected |= {} if kind == 'parquet' else {'not_json': 1}
    assert dropped == {f'dropped_{reason}': count for reason, count in expected.items()}
    assert counts['records_read'] == sum(dropped.values()) + len(good)
    a, b = sorted(records(c), key=lambda record: record['id'])
    assert (a['id'], b['id']) == ('a', 'b') and a['messages'][2] == dict(role='user', content='Shorter!')
    assert a['user_id'] != b['user_id']


def test_ingest_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match='config.data.raw'):
        ingest.STAGE.run(config(tmp_path))


def test_chunks_and_workers_change_no_byte(tmp_path, monkeypatch):
    raw = [raw_conversation(f'c{n}', f'What is {"äß水"[n % 3] * n}?', 'So.', user=f'u{n % 5}') for n in range(60)]
    write_lines(tmp_path / 'raw.jsonl', raw)
    outputs = set()
    for size, workers in ((10**9, 1), (400, 1), (3001, 2), (3001, 3)):
        monkeypatch.setattr(scan, 'CHUNK', size)
        monkeypatch.setattr(ingest, 'TEXT', size)
        c = config(tmp_path, conversations=str(tmp_path / f'{size} {workers}'))
        c.ingest.workers = workers
        assert nothing_is_lost(ingest.STAGE.run(c))
        outputs.add(output(c))
    assert len(outputs) == 1 and len(records(c)) == 60


def test_killed_again_and_again_it_ends_in_the_same_bytes(tmp_path):
    """Each run is killed as soon as one more part is finished; finished parts are not written again."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    for part in range(8):
        lines = [
            json.dumps(raw_conversation(f'{part}.{n}', f'Thing {part * n}?', 'So. ' * 50, user=f'u{n}'))
            for n in range(1500)
        ]
        (folder / f'{part}.jsonl.gz').write_bytes(gzip.compress('\n'.join(lines).encode(), 1))
    (tmp_path / 'c.py').write_text(
        'from rlhi_jax.config import base_config\n'
        f'def get_config():\n    c = base_config()\n    c.data.raw = {str(folder)!r}\n    return c\n'
    )

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, '-m', 'data_pipelines.ingest', f'--config={tmp_path / "c.py"}']
        environment = os.environ | dict(JAX_PLATFORMS='cpu')
        flag = f'--config.data.conversations={tmp_path / name}'
        return subprocess.Popen([*command, flag], cwd=tiny.ROOT, env=environment, start_new_session=True)

    assert start('whole').wait() == 0
    work, before = tmp_path / '.killed.journal', {}
    for kill in range(1, 5):
        process = start('killed')
        while process.poll() is None and len(list(work.glob('*/[0-9]*.parquet'))) < kill:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {path.name: path.stat().st_mtime_ns for path in work.glob('*/[0-9]*.parquet')}
        assert before.items() <= now.items() and not (tmp_path / 'killed').exists()
        before = now
    assert start('killed').wait() == 0 and not work.exists()
    files = [
        sorted((path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()) for name in ('whole', 'killed')
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGKILL'])
def test_workers_end_with_the_stage(tmp_path, name):
    folder = tmp_path / 'raw'
    folder.mkdir()
    for part in range(2):  # half a minute of work
        lines = (json.dumps(raw_conversation(f'{part}', 'How do bees fly?', 'With wings.')) + '\n').encode() * 200_000
        (folder / f'{part}.jsonl.gz').write_bytes(gzip.compress(lines, 1))
    paths = [f'--config.data.raw={folder}', f'--config.data.conversations={tmp_path / "out"}']
    command = [sys.executable, '-m', 'data_pipelines.ingest', f'--config={tiny.CONFIG}', *paths]
    process = subprocess.Popen(command, cwd=tiny.ROOT, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(tmp_path.glob('.out.journal/*/.*.tmp'))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=10)  # waits until the workers, too, have closed stderr
    assert process.returncode < 0 and not list(tmp_path.glob('.out.journal/*/[0-9]*.parquet'))


def test_mutated_records_are_counted_and_crash_nothing(tmp_path):
    rng = random.Random(0)
    good = [raw_conversation(f'c{n}', f'Thing {n}?', 'So.', 'Shorter!', 'S.', user=f'u{n % 9}') for n in range(50)]
    lines = [mutated(rng.choice(good), rng) for _ in range(5000)]
    deep = json.dumps(raw_conversation('deep', 'So deep?', 'So.', header='HERE')).encode()
    lines += [deep.replace(b'"HERE"', b'[' * depth + b']' * depth) for depth in range(500, 1000)]
    (tmp_path / 'raw.jsonl').write_bytes(b'\n'.join(lines))
    c = config(tmp_path, conversations=str(tmp_path / 'runs' / 'out'))
    c.ingest.salt, c.ingest.max_characters = str(tmp_path / 'salt'), 0
    counts = ingest.STAGE.run(c)
    assert counts['records_read'] == len(lines) and nothing_is_lost(counts)
    reasons = {'not_json', 'no_messages', 'message_without_text', 'unknown_role', 'empty_message'}
    assert {f'dropped_{reason}' for reason in reasons} <= counts.keys()
    for record in records(c):
        assert [m['role'] for m in record['messages']] == [
            ('user', 'assistant')[i % 2] for i in range(len(record['messages']))
        ]
        assert all(m['content'].strip() for m in record['messages'])


def test_a_broken_file_says_which_and_a_broken_off_one_is_counted(tmp_path, capfd):
    (tmp_path / 'x.parquet').write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'x\.parquet is not a parquet file'):
        ingest.STAGE.run(config(tmp_path, raw=str(tmp_path / 'x.parquet')))
    whole = gzip.compress(
        '\n'.join(json.dumps(raw_conversation(f'c{n}', f'Thing {n}?', 'So.')) for n in range(500)).encode()
    )
    (tmp_path / 'x.jsonl.gz').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'y.jsonl.gz').write_bytes(b'\x1f\x8bnothing')
    counts = ingest.STAGE.run(config(tmp_path, raw=f'{tmp_path}/x.jsonl.gz,{tmp_path}/y.jsonl.gz'))
    assert counts['files_broken_off'] == 2 and nothing_is_lost(counts) and 0 < counts['kept_train'] < 500
    errors = capfd.readouterr().err
    assert [errors.count(f'{name}.jsonl.gz is truncated or not gzip: fetch it again') for name in 'xy'] == [1, 1]


def test_of_parquet_odd_values_are_read_or_counted(tmp_path):
    """Times in ns, text that is not UTF-8, and a year that Python does not support."""
    names = pyarrow.array([b'a', b'b', b'\xff', b'd']).view(pyarrow.string())
    turns = [[dict(role=role, content=f'{text} {n}', timestamp=10**18 + n) for role, text in TURNS] for n in range(4)]
    turn = dict(role=pyarrow.string(), content=pyarrow.string(), timestamp=pyarrow.timestamp('ns'))
    turns = pyarrow.array(turns, pyarrow.list_(pyarrow.struct(turn)))
    times = pyarrow.array([1, 2, 3, 10**18], pyarrow.timestamp('us'))
    pyarrow.parquet.write_table(
        pyarrow.table(dict(conversation_hash=names, conversation=turns, created=times)), tmp_path / 'x.parquet'
    )
    c = config(tmp_path, raw=str(tmp_path / 'x.parquet'))
    counts = ingest.STAGE.run(c)
    assert counts['dropped_unreadable_value'] == 2 and nothing_is_lost(counts)
    assert [(record['id'], record['ended']) for record in records(c)] == [
        (name, '2001-09-09T01:46:40+00:00') for name in 'ab'
    ]


def test_how_many_are_in_memory_hangs_on_how_long_they_are(tmp_path, monkeypatch):
    long = '水' * 3000
    raw = [raw_conversation(f'c{n}', f'What is thing {n * 7919}? {long}', 'So.', user=f'u{n}') for n in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(raw), tmp_path / 'x.parquet', use_dictionary=False)
    at_once, rows, files, as_python, made = [], [], [], raw_files._as_python, ingest._records

    def read(batch):
        at_once.append(len(batch))
        return as_python(batch)

    def make(paths):
        part = pyarrow.parquet.read_metadata(paths[0].parents[1] / '000000.parquet')
        rows.extend(part.row_group(group).num_rows for group in range(part.num_row_groups))
        files.extend(len(pyarrow.ipc.open_stream(path).read_all()) for path in paths)
        return made(paths)

    for module in (scan, ingest, raw_files):
        monkeypatch.setattr(module, 'TEXT', 30_000)
    monkeypatch.setattr(raw_files, '_as_python', read)
    monkeypatch.setattr(ingest, '_records', make)
    c = config(tmp_path, raw=str(tmp_path / 'x.parquet'))
    ingest.STAGE.run(c)
    assert len(records(c)) == sum(at_once) == sum(rows) == sum(files) == 40
    assert max(at_once) <= 4 and max(rows) <= 4 and max(files) <= 4


@pytest.mark.parametrize('name', ['user_id=evil', 'split=validation', 'fold[1]*?', "it's"])
def test_the_name_of_a_folder_means_nothing(tmp_path, name):
    write_lines(
        tmp_path / 'raw.jsonl', [raw_conversation(f'c{n}', f'What is thing {n * 7919}?', 'So.') for n in range(5)]
    )
    c, other = config(tmp_path), config(tmp_path, conversations=str(tmp_path / name / 'out'))
    assert ingest.STAGE.run(c) == ingest.STAGE.run(other) and output(c) == output(other)


def test_what_lies_in_the_folder_of_work_is_in_nobody_s_way(tmp_path):
    write_lines(tmp_path / 'raw.jsonl', [raw_conversation('a', 'How do bees fly?', 'With wings.')])
    (tmp_path / '.conversations.journal' / 'other').mkdir(parents=True)
    (tmp_path / '.conversations.journal' / 'journal.sqlite').touch()
    assert ingest.STAGE.run(config(tmp_path))['kept_train'] == 1


@pytest.mark.parametrize(('text', 'remedy'), [('', 'set the key to other files'), ('{"a": 1}', 'check the paths in')])
def test_what_holds_nothing_to_use_is_refused_with_a_remedy(tmp_path, text, remedy):
    (tmp_path / 'raw.jsonl').write_text(text)
    with pytest.raises(UserError, match=f'config.data.raw: .*: {remedy}'):
        ingest.STAGE.run(config(tmp_path))


def test_a_worker_reads_salt_and_opt_out_once(tmp_path, monkeypatch):
    write_lines(
        tmp_path / 'raw.jsonl', [raw_conversation(f'c{n}', f'What is thing {n * 7919}?', 'So.') for n in range(5)]
    )
    (tmp_path / 'opt_out.txt').write_text('nobody')
    c, read = config(tmp_path, conversations=str(tmp_path / 'runs' / 'out')), []
    c.ingest.salt, c.ingest.opt_out, c.ingest.workers = str(tmp_path / 'salt'), str(tmp_path / 'opt_out.txt'), 1
    monkeypatch.setattr(scan, 'CHUNK', 400)
    monkeypatch.setattr(scan, 'read_salt', lambda path: read.append(path) or read_salt(path))
    monkeypatch.setattr(scan, 'read_opt_out', lambda path: read.append(path) or read_opt_out(path))
    monkeypatch.setattr(ingest, '_work_side_by_side', lambda _, parts: scan.work(parts[0].parent / 'job.json', 0))
    assert ingest.STAGE.run(c)['kept_train'] == 5 and read == [c.ingest.salt, c.ingest.opt_out]
