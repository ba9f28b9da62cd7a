"""Raw conversations → records: files as published, mutated, cut into chunks and killed."""

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from benchmarks.mutations import mutated
from talks import SHARED_DATA, config, nothing_is_lost, output, records, talk, write_lines

from data_pipelines import ingest, scan
from data_pipelines.sources.conversations import conversation
from data_pipelines.users import read_opt_out, read_salt
from rlhi_jax.config import base_config
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.errors import UserError

HUMAN_EVAL = SHARED_DATA / 'realhumaneval' / 'chat.jsonl'


@pytest.mark.parametrize('kind', ['jsonl', 'jsonl.gz', 'parquet'])
def test_ingest_reads_what_is_published_and_counts_the_rest(tmp_path, kind):
    good = [talk('a', 'How do bees fly?', 'With wings.', 'Shorter!'), talk('b', 'What is tea?', 'A drink.', user='v')]
    bad = [
        talk('c', 'Hi', 'You!', toxic=True),
        talk('d', 'Only me'),
        talk('a', 'How do bees fly?', 'With wings.', 'Shorter!'),
        talk('e', 'Empty', '  '),
        talk('f', 'One', 'Two') | dict(conversation=[dict(role='assistant', content='I begin')]),
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
    expected = dict(toxic=1, no_reply=1, seen_before=1, empty_message=1, roles_do_not_alternate=1)
    expected |= {} if kind == 'parquet' else {'not_json': 1}
    assert dropped == {f'dropped_{reason}': count for reason, count in expected.items()}
    assert counts['records_read'] == sum(dropped.values()) + len(good)
    a, b = sorted(records(c), key=lambda record: record['id'])
    assert (a['id'], b['id']) == ('a', 'b') and a['messages'][2] == dict(role='user', content='Shorter!')
    assert a['user_id'] != b['user_id']


def test_ingest_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match='config.data.raw'):
        ingest.STAGE.run(config(tmp_path))


def test_a_conversation_begins_with_its_first_turn_and_ends_with_its_own_time_stamp(tmp_path):
    one = talk('a', 'How do bees fly?', 'With wings.', timestamp='2024-05-01T12:00:00+00:00')
    one['conversation'][0]['timestamp'] = None
    one['conversation'][1]['timestamp'] = '2024-05-01 10:00:00+02:00'
    found = conversation(one, config(tmp_path).ingest.fields)
    assert found['began'] == '2024-05-01T08:00:00+00:00' and found['ended'] == '2024-05-01T12:00:00+00:00'
    bare = [dict(role=turn['role'], content=turn['content']) for turn in one['conversation']]
    found = conversation(dict(messages=bare, timestamp='2024-05-01'), config(tmp_path).ingest.fields)
    assert found['began'] == '' and found['ended'] == '2024-05-01T00:00:00+00:00'


@pytest.mark.parametrize('at', itertools.product(('', '2024-05-01T12:00:00+00:00'), repeat=3))
def test_stamps_of_other_turns_do_not_say_when_it_began_and_ended(tmp_path, at):
    one = talk('a', 'How do bees fly?', 'With wings.', 'Shorter!', 'Wings.', 'Thanks.')
    del one['timestamp']
    for turn, stamp in zip(one['conversation'], ('', at[0], at[1], '', at[2]), strict=True):
        turn['timestamp'] = stamp
    found = conversation(one, config(tmp_path).ingest.fields)
    assert (found['began'], found['ended']) == (at[0], at[2])


SAID = [('user', 'What is tea?'), ('assistant', 'A drink.'), ('user', 'Shorter!'), ('assistant', 'Drink.')]
MESSAGES = [dict(role=role, content=text) for role, text in SAID]

PUBLISHED = {
    'wildchat': talk('c1', *[text for _, text in SAID], user='u7'),
    'lmsys': dict(
        conversation_id='c1', model='m', turn=2, language='English', openai_moderation=[dict(flagged=False)] * 4,
        conversation=[dict(role=role, content=text) for role, text in SAID],
    ),
    'sharegpt': dict(
        id='c1', conversations=[{'from': {'user': 'human'}.get(role, 'gpt'), 'value': text} for role, text in SAID]
    ),
    'realhumaneval': dict(
        user_id='u7', timestamp_s=12.5, model='m', task='t', response='Drink.',
        messages=[dict(content=text, role=role) for role, text in SAID[:-1]],
    ),
    'serving log': dict(
        id='c1', user='u7', created=1714550400,
        messages=[dict(role='system', content='Be kind.'), *(dict(role=role, content=text) for role, text in SAID)],
    ),
}  # fmt: skip


@pytest.mark.parametrize('layout', PUBLISHED)
def test_every_published_layout_is_the_same_conversation(layout):
    found = conversation(json.loads(json.dumps(PUBLISHED[layout])), base_config().ingest.fields)
    assert [(message['role'], message['content']) for message in found['messages']] == SAID
    assert found['system'] == ('Be kind.' if layout == 'serving log' else '')
    assert found['ended'] == {
        'wildchat': '2026-01-01T00:00:00+00:00',
        'realhumaneval': '1970-01-01T00:00:12.500000+00:00',
        'serving log': '2024-05-01T08:00:00+00:00',
    }.get(layout, '')
    assert bool(found['user_id']) == (layout in ('wildchat', 'realhumaneval', 'serving log'))
    assert (found['id'] == 'c1') == (layout != 'realhumaneval')


def read(**fields):
    """The conversation of a record that says nothing but what these fields say."""
    return conversation(fields, base_config().ingest.fields)


def test_what_is_flagged_is_so_wherever_it_stands():
    flagged = PUBLISHED['lmsys'] | dict(openai_moderation=[dict(flagged=False), dict(flagged=True)])
    assert read(**flagged)['toxic'] and not read(**PUBLISHED['lmsys'])['toxic']
    first, *others = MESSAGES
    for name in ('toxic', 'redacted'):
        for flag, expected in (('False', False), ('True', True), (float('nan'), False), (1, True), (None, False)):
            assert read(messages=MESSAGES, **{name: flag})[name] == expected
            assert read(conversation=[first | {name: flag}, *others], **{name: None})[name] == expected


PARTS = [dict(type='text', text='One'), dict(type='text', text='Two')]


@pytest.mark.parametrize('path', ['content|value', 'content.text|content'])
def test_a_message_may_come_in_parts(path):
    fields = base_config().ingest.fields
    fields.content = path
    found = conversation(dict(messages=[dict(role='user', content=PARTS), *MESSAGES[1:]]), fields)
    assert [message['content'] for message in found['messages']] == ['One\nTwo', 'A drink.', 'Shorter!', 'Drink.']


def test_what_is_no_text_has_a_reason_of_its_own():
    picture = [*PARTS, dict(type='image_url', text=None, image_url=dict(url='x'))]
    for record, reason in (
        (dict(messages=[dict(role='user', content=picture), *MESSAGES[1:]]), 'part_without_text'),
        (dict(messages=[dict(role='user', content=5), *MESSAGES[1:]]), 'message_without_text'),
        (dict(messages=[dict(role='user', content=[]), *MESSAGES[1:]]), 'message_without_text'),
        (dict(messages=[dict(role='user', content=''), *MESSAGES[1:]]), 'empty_message'),
        ([dict(messages=MESSAGES)], 'array_of_records'),
    ):
        with pytest.raises(BadRecord) as bad:
            conversation(record, base_config().ingest.fields)
        assert bad.value.reason == reason


def test_system_messages_at_the_beginning_are_one():
    told = [dict(role='system', content='Be kind.'), dict(role='developer', content='Be brief.')]
    question, reply, *others = MESSAGES
    found = read(messages=[*told, question, reply | dict(timestamp=1714550400), *others])
    assert found['system'] == 'Be kind.\n\nBe brief.' and found['messages'] == MESSAGES
    assert found['began'] == '2024-05-01T08:00:00+00:00'


def test_nothing_hides_what_holds_something():
    found = read(conversation=[], messages=MESSAGES, hashed_ip='', user_id=7.0, timestamp='', created=1714550400)
    assert (found['messages'], found['user_id'], found['ended']) == (MESSAGES, '7', '2024-05-01T08:00:00+00:00')
    assert read(messages=MESSAGES, user_id=0)['user_id'] == '0'
    assert [read(messages=MESSAGES, user_id=name)['user_id'] for name in (7.5, float('nan'), True)] == [''] * 3


@pytest.mark.parametrize(
    ('stamp', 'expected'),
    [
        ('2024-05-01 08:00:00 UTC', '2024-05-01T08:00:00+00:00'),
        *[(1714550400 * 1000**n, '2024-05-01T08:00:00+00:00') for n in range(4)],
        *[(str(1712010512 * 1000**n), '2024-04-01T22:28:32+00:00') for n in range(4)],  # which also begin as dates do
        ('1714550400.5', '2024-05-01T08:00:00.500000+00:00'),
        ('20240501', '2024-05-01T00:00:00+00:00'),
        *[(stamp, '') for stamp in (True, float('nan'), float('inf'), 1e300, 10**400, '2024', '20240501080000')],
    ],
)
def test_time_stamps(stamp, expected):
    assert read(messages=MESSAGES, timestamp=stamp)['ended'] == expected


def test_other_layouts_need_other_paths_only(tmp_path):
    c = config(tmp_path)
    c.ingest.fields.messages, c.ingest.fields.content, c.ingest.fields.role = 'log.items', 'said.text', 'who'
    c.ingest.fields.user_role, c.ingest.fields.user = 'client', 'log.client.id'
    items = [dict(who={'user': 'client'}.get(role, role), said=dict(text=text)) for role, text in SAID]
    write_lines(tmp_path / 'raw.jsonl', [dict(log=dict(items=items, client=dict(id='u7')))])
    assert nothing_is_lost(ingest.STAGE.run(c))
    (found,) = records(c)
    assert [(message['role'], message['content']) for message in found['messages']] == SAID
    assert found['user_id'] == 'u7'


@pytest.mark.parametrize('ids', ['123', '113'])
def test_calls_of_a_serving_log_become_one_conversation(tmp_path, ids):
    texts = [text for _, text in SAID]
    calls = [
        dict(id=ids[0], user='u', created=100, messages=[dict(role=r, content=t) for r, t in SAID[:2]]),
        dict(id=ids[1], user='u', created=200, messages=[dict(role=r, content=t) for r, t in SAID]),
        dict(id=ids[2], user='other', created=300, messages=[dict(role=r, content=t) for r, t in SAID[:2]]),
    ]
    for order in (calls, calls[::-1]):
        c = config(tmp_path, conversations=str(tmp_path / f'of {order[0]["id"]}'))
        write_lines(tmp_path / 'raw.jsonl', order)
        counts = ingest.STAGE.run(c)
        assert counts['dropped_goes_on_in_another'] == 1 and nothing_is_lost(counts)
        other, whole = records(c)
        assert (other['user_id'], whole['user_id']) == ('other', 'u')
        assert [message['content'] for message in whole['messages']] == texts
        assert whole['began'] == '1970-01-01T00:01:40+00:00' and whole['ended'] == '1970-01-01T00:03:20+00:00'


def test_of_one_id_the_longest_is_kept(tmp_path):
    """As in a log whose system message holds the date, or whose calls end in what was asked."""
    texts = [*SAID, ('user', 'In French!')]
    for number, lengths in enumerate([(2, 4), (4, 2), (1 + 2, 5)]):
        calls = [
            dict(id='s', messages=[dict(role=r, content=t) for r, t in (('system', f'It is day {n}.'), *texts[:n])])
            for n in lengths
        ]
        write_lines(tmp_path / 'raw.jsonl', calls)
        counts = ingest.STAGE.run(c := config(tmp_path, conversations=str(tmp_path / f'of {number}')))
        (kept,) = records(c)
        assert len(kept['messages']) == max(lengths) and counts['dropped_id_seen_before'] == 1


def test_a_serving_log_that_lacks_the_first_call_does_not_say_when_it_began(tmp_path):
    texts = [*SAID, ('user', 'In French!'), ('assistant', 'Thé.')]
    calls = [
        dict(id=str(n), user='u', created=n, messages=[dict(role=r, content=t) for r, t in texts[:n]]) for n in (4, 6)
    ]
    write_lines(tmp_path / 'raw.jsonl', calls)
    ingest.STAGE.run(c := config(tmp_path))
    (whole,) = records(c)
    assert (whole['began'], whole['ended']) == ('', '1970-01-01T00:00:06+00:00')


@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason='no ../shared/data/realhumaneval')
def test_programmers_have_a_history(tmp_path):
    c = config(tmp_path, raw=str(HUMAN_EVAL))
    counts = ingest.STAGE.run(c)
    assert counts['records_read'] == 823 and nothing_is_lost(counts) and counts['dropped_goes_on_in_another'] > 100
    found = records(c)
    assert [(r['user_id'], r['ended']) for r in found] == sorted((r['user_id'], r['ended']) for r in found)
    assert np.mean([record['began'] != '' for record in found]) > 0.9


def test_chunks_and_workers_change_no_byte(tmp_path, monkeypatch):
    raw = [talk(f'c{n}', f'What is {"äß水"[n % 3] * n}?', 'So.', user=f'u{n % 5}') for n in range(60)]
    write_lines(tmp_path / 'raw.jsonl', raw)
    found = set()
    for size, workers in ((10**9, 1), (400, 1), (3001, 2), (3001, 3)):
        monkeypatch.setattr(scan, 'CHUNK', size)
        monkeypatch.setattr(ingest, 'TEXT', size)
        c = config(tmp_path, conversations=str(tmp_path / f'{size} {workers}'))
        c.ingest.workers = workers
        assert nothing_is_lost(ingest.STAGE.run(c))
        found.add(output(c))
    assert len(found) == 1 and len(records(c)) == 60


def test_killed_again_and_again_it_ends_in_the_same_bytes(tmp_path):
    """Each run is killed as soon as one more part is done; what was done is not done again."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    for part in range(8):
        lines = [json.dumps(talk(f'{part}.{n}', f'Thing {part * n}?', 'So. ' * 50, user=f'u{n}')) for n in range(1500)]
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
    for part in range(2):  # work for half a minute
        lines = (json.dumps(talk(f'{part}', 'How do bees fly?', 'With wings.')) + '\n').encode() * 200_000
        (folder / f'{part}.jsonl.gz').write_bytes(gzip.compress(lines, 1))
    paths = [f'--config.data.raw={folder}', f'--config.data.conversations={tmp_path / "out"}']
    command = [sys.executable, '-m', 'data_pipelines.ingest', f'--config={tiny.CONFIG}', *paths]
    process = subprocess.Popen(command, cwd=tiny.ROOT, stderr=subprocess.PIPE)
    while process.poll() is None and len(list(tmp_path.glob('.out.journal/*/.*.tmp'))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=10)  # until the workers, too, have closed what they write errors to
    assert process.returncode < 0 and not list(tmp_path.glob('.out.journal/*/[0-9]*.parquet'))


def test_mutated_records_are_counted_and_crash_nothing(tmp_path):
    rng = random.Random(0)
    good = [talk(f'c{n}', f'Thing {n}?', 'So.', 'Shorter!', 'S.', user=f'u{n % 9}') for n in range(50)]
    lines = [mutated(rng.choice(good), rng) for _ in range(5000)]
    deep = json.dumps(talk('deep', 'So deep?', 'So.', header='HERE')).encode()
    lines += [deep.replace(b'"HERE"', b'[' * depth + b']' * depth) for depth in range(500, 1000)]
    (tmp_path / 'raw.jsonl').write_bytes(b'\n'.join(lines))
    c = config(tmp_path, conversations=str(tmp_path / 'runs' / 'out'))
    c.ingest.salt, c.ingest.max_characters = str(tmp_path / 'salt'), 0
    counts = ingest.STAGE.run(c)
    assert counts['records_read'] == len(lines) and nothing_is_lost(counts)
    reasons = {
        'not_json',
        'nested_too_deeply',
        'no_messages',
        'message_without_text',
        'roles_do_not_alternate',
        'empty_message',
    }
    assert {f'dropped_{reason}' for reason in reasons} <= counts.keys()
    for record in records(c):
        assert [m['role'] for m in record['messages']] == [
            ('user', 'assistant')[i % 2] for i in range(len(record['messages']))
        ]
        assert all(m['content'].strip() for m in record['messages'])


def test_a_broken_file_says_which_and_a_broken_off_one_is_counted(tmp_path, capfd):
    (tmp_path / 'x.parquet').write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'x\.parquet is no parquet file'):
        ingest.STAGE.run(config(tmp_path, raw=str(tmp_path / 'x.parquet')))
    whole = gzip.compress('\n'.join(json.dumps(talk(f'c{n}', f'Thing {n}?', 'So.')) for n in range(500)).encode())
    (tmp_path / 'x.jsonl.gz').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'y.jsonl.gz').write_bytes(b'{}')
    counts = ingest.STAGE.run(config(tmp_path, raw=f'{tmp_path}/x.jsonl.gz,{tmp_path}/y.jsonl.gz'))
    assert counts['files_broken_off'] == 2 and nothing_is_lost(counts) and 0 < counts['kept_train'] < 500
    told = capfd.readouterr().err
    assert [told.count(f'{name}.jsonl.gz breaks off, or is no gzip: fetch it again') for name in 'xy'] == [1, 1]


def test_of_parquet_odd_values_are_read_or_counted(tmp_path):
    """Times in ns, a text that is no UTF-8, and a year that Python has not."""
    names = pyarrow.array([b'a', b'b', b'\xff', b'd']).view(pyarrow.string())
    turns = [[dict(role=role, content=f'{text} {n}', timestamp=10**18 + n) for role, text in SAID] for n in range(4)]
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
    raw = [talk(f'c{n}', f'What is thing {n * 7919}? {long}', 'So.', user=f'u{n}') for n in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(raw), tmp_path / 'x.parquet', use_dictionary=False)
    at_once, rows, files, as_python, made = [], [], [], scan._as_python, ingest._records

    def read(batch, counts):
        at_once.append(len(batch))
        return as_python(batch, counts)

    def make(paths):
        part = pyarrow.parquet.read_metadata(paths[0].parents[1] / '000000.parquet')
        rows.extend(part.row_group(group).num_rows for group in range(part.num_row_groups))
        files.extend(len(pyarrow.ipc.open_stream(path).read_all()) for path in paths)
        return made(paths)

    for module in (scan, ingest):
        monkeypatch.setattr(module, 'TEXT', 30_000)
    monkeypatch.setattr(scan, '_as_python', read)
    monkeypatch.setattr(ingest, '_records', make)
    c = config(tmp_path, raw=str(tmp_path / 'x.parquet'))
    ingest.STAGE.run(c)
    assert len(records(c)) == sum(at_once) == sum(rows) == sum(files) == 40
    assert max(at_once) <= 4 and max(rows) <= 4 and max(files) <= 4


@pytest.mark.parametrize('name', ['user_id=evil', 'split=heldout', 'fold[1]*?', "it's"])
def test_the_name_of_a_folder_means_nothing(tmp_path, name):
    write_lines(tmp_path / 'raw.jsonl', [talk(f'c{n}', f'What is thing {n * 7919}?', 'So.') for n in range(5)])
    c, other = config(tmp_path), config(tmp_path, conversations=str(tmp_path / name / 'out'))
    assert ingest.STAGE.run(c) == ingest.STAGE.run(other) and output(c) == output(other)


def test_what_lies_in_the_folder_of_work_is_in_nobody_s_way(tmp_path):
    write_lines(tmp_path / 'raw.jsonl', [talk('a', 'How do bees fly?', 'With wings.')])
    (tmp_path / '.conversations.journal' / 'other').mkdir(parents=True)
    (tmp_path / '.conversations.journal' / 'journal.sqlite').touch()
    assert ingest.STAGE.run(config(tmp_path))['kept_train'] == 1


@pytest.mark.parametrize(('text', 'remedy'), [('', 'fetch it again'), ('{"a": 1}', 'see config.ingest.fields')])
def test_what_holds_nothing_to_use_is_refused_with_a_remedy(tmp_path, text, remedy):
    (tmp_path / 'raw.jsonl').write_text(text)
    with pytest.raises(UserError, match=f'config.data.raw: .*: {remedy}'):
        ingest.STAGE.run(config(tmp_path))


def test_a_worker_reads_salt_and_opt_out_once(tmp_path, monkeypatch):
    write_lines(tmp_path / 'raw.jsonl', [talk(f'c{n}', f'What is thing {n * 7919}?', 'So.') for n in range(5)])
    (tmp_path / 'opt_out.txt').write_text('nobody')
    c, read = config(tmp_path, conversations=str(tmp_path / 'runs' / 'out')), []
    c.ingest.salt, c.ingest.opt_out, c.ingest.workers = str(tmp_path / 'salt'), str(tmp_path / 'opt_out.txt'), 1
    monkeypatch.setattr(scan, 'CHUNK', 400)
    monkeypatch.setattr(scan, 'read_salt', lambda path: read.append(path) or read_salt(path))
    monkeypatch.setattr(scan, 'read_opt_out', lambda path: read.append(path) or read_opt_out(path))
    monkeypatch.setattr(ingest, '_work_side_by_side', lambda _, parts: scan.work(parts[0].parent / 'job.json', 0))
    assert ingest.STAGE.run(c)['kept_train'] == 5 and read == [c.ingest.salt, c.ingest.opt_out]
