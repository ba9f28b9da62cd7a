"""Published records → conversations: their messages and times, and calls of a serving log that become one."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from raw_conversations import SHARED_DATA, TURNS, config, nothing_is_lost, raw_conversation, records, write_lines

from data_pipelines import ingest
from data_pipelines.raw.formats import parse_conversation
from data_pipelines.raw.messages import NAMES
from rlhi_jax.config import base_config
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.files import digest

HUMAN_EVAL = SHARED_DATA / 'realhumaneval' / 'chat.jsonl'


def test_a_time_of_creation_counts_for_all_turns_if_there_is_no_other():
    messages = [dict(role=('user', 'assistant')[i % 2], content=f't{i}') for i in range(4)]
    counts: Counter = Counter()
    parsed = parse_conversation(dict(messages=messages, created_at='2024-05-01T08:00:00Z'), NAMES, counts=counts)
    assert parsed['began'] == parsed['ended'] == '2024-05-01T08:00:00+00:00'
    assert counts == {'times_of_whole_conversations': 1}
    messages[3]['timestamp'] = '2024-05-01T09:00:00Z'
    parsed = parse_conversation(dict(messages=messages, created_at='2024-05-01T08:00:00Z'), NAMES)
    assert (parsed['began'], parsed['ended']) == ('2024-05-01T08:00:00+00:00', '2024-05-01T09:00:00+00:00')
    parsed = parse_conversation(dict(messages=messages[:3] + [dict(messages[3], timestamp=None)], timestamp=9), NAMES)
    assert parsed['began'] == ''


def test_a_conversation_begins_with_its_first_turn_and_ends_with_its_own_time_stamp(tmp_path):
    one = raw_conversation('a', 'How do bees fly?', 'With wings.', timestamp='2024-05-01T12:00:00+00:00')
    one['conversation'][0]['timestamp'] = None
    one['conversation'][1]['timestamp'] = '2024-05-01 10:00:00+02:00'
    parsed = parse_conversation(one, config(tmp_path).ingest.fields)
    assert parsed['began'] == '2024-05-01T08:00:00+00:00' and parsed['ended'] == '2024-05-01T12:00:00+00:00'
    bare = [dict(role=turn['role'], content=turn['content']) for turn in one['conversation']]
    parsed = parse_conversation(dict(messages=bare, timestamp='2024-05-01'), config(tmp_path).ingest.fields)
    assert parsed['began'] == '' and parsed['ended'] == '2024-05-01T00:00:00+00:00'


@pytest.mark.parametrize('at', itertools.product(('', '2024-05-01T12:00:00+00:00'), repeat=3))
def test_stamps_of_other_turns_do_not_say_when_it_began_and_ended(tmp_path, at):
    one = raw_conversation('a', 'How do bees fly?', 'With wings.', 'Shorter!', 'Wings.', 'Thanks.')
    del one['timestamp']
    for turn, stamp in zip(one['conversation'], ('', at[0], at[1], '', at[2]), strict=True):
        turn['timestamp'] = stamp
    parsed = parse_conversation(one, config(tmp_path).ingest.fields)
    assert (parsed['began'], parsed['ended']) == (at[0], at[2])


MESSAGES = [dict(role=role, content=text) for role, text in TURNS]

PUBLISHED = {
    'wildchat': raw_conversation('c1', *[text for _, text in TURNS], user='u7'),
    'lmsys': dict(
        conversation_id='c1', model='m', turn=2, language='English', openai_moderation=[dict(flagged=False)] * 4,
        conversation=[dict(role=role, content=text) for role, text in TURNS],
    ),
    'sharegpt': dict(
        id='c1', conversations=[{'from': {'user': 'human'}.get(role, 'gpt'), 'value': text} for role, text in TURNS]
    ),
    'realhumaneval': dict(
        user_id='u7', timestamp_s=12.5, model='m', task='t', response='Drink.',
        messages=[dict(content=text, role=role) for role, text in TURNS[:-1]],
    ),
    'serving log': dict(
        id='c1', user='u7', created=1714550400,
        messages=[dict(role='system', content='Be kind.'), *(dict(role=role, content=text) for role, text in TURNS)],
    ),
}  # fmt: skip


@pytest.mark.parametrize('layout', PUBLISHED)
def test_every_published_layout_is_the_same_conversation(layout):
    parsed = parse_conversation(json.loads(json.dumps(PUBLISHED[layout])), base_config().ingest.fields)
    assert [(message['role'], message['content']) for message in parsed['messages']] == TURNS
    assert parsed['system'] == ('Be kind.' if layout == 'serving log' else '')
    assert parsed['ended'] == {
        'wildchat': '2026-01-01T00:00:00+00:00',
        'realhumaneval': '1970-01-01T00:00:12.500000+00:00',
        'serving log': '2024-05-01T08:00:00+00:00',
    }.get(layout, '')
    assert bool(parsed['user_id']) == (layout in ('wildchat', 'realhumaneval', 'serving log'))
    assert (parsed['id'] == 'c1') == (layout != 'realhumaneval')


def read(**fields):
    """The conversation of a record with these fields only."""
    return parse_conversation(fields, base_config().ingest.fields)


def test_the_reply_of_a_logged_completion_is_read_where_it_stands():
    choices = [dict(index=0, message=dict(role='assistant', content='Drink.'), finish_reason='stop')]
    for reply in (dict(choices=choices), dict(response=dict(id='x', choices=choices)), dict(response='Drink.')):
        assert read(messages=MESSAGES[:-1], **reply)['messages'] == MESSAGES


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
    parsed = parse_conversation(dict(messages=[dict(role='user', content=PARTS), *MESSAGES[1:]]), fields)
    assert [message['content'] for message in parsed['messages']] == ['One\nTwo', 'A drink.', 'Shorter!', 'Drink.']


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
            parse_conversation(record, base_config().ingest.fields)
        assert bad.value.reason == reason


def test_system_messages_at_the_beginning_are_one():
    system = [dict(role='system', content='Be kind.'), dict(role='developer', content='Be brief.')]
    question, reply, *others = MESSAGES
    parsed = read(messages=[*system, question, reply | dict(timestamp=1714550400), *others])
    assert parsed['system'] == 'Be kind.\n\nBe brief.' and parsed['messages'] == MESSAGES
    assert parsed['began'] == '2024-05-01T08:00:00+00:00'


def test_the_id_of_a_record_without_one_depends_on_every_system_text():
    said = [dict(role='system', content='Be kind.'), *MESSAGES]
    plain, stated = digest('', MESSAGES)[:32], digest('', MESSAGES, 'Be kind.')[:32]
    for column in ({}, dict(system=None), dict(system=' ')):
        assert read(messages=MESSAGES, **column)['id'] == plain
    assert read(messages=said)['id'] == read(messages=MESSAGES, system='Be kind.')['id'] == stated
    systems = ('Be kind.', 'Be short.', 'Be kind. Be short.')
    assert len({plain, *(read(messages=MESSAGES, system=text)['id'] for text in systems)}) == 4
    assert len({read(messages=said)['id'], *(read(messages=said, system=text)['id'] for text in systems)}) == 4


def test_nothing_hides_what_holds_something():
    parsed = read(conversation=[], messages=MESSAGES, hashed_ip='', user_id=7.0, timestamp='', created=1714550400)
    assert (parsed['messages'], parsed['user_id'], parsed['ended']) == (MESSAGES, '7', '2024-05-01T08:00:00+00:00')
    assert read(messages=MESSAGES, user_id=0)['user_id'] == '0'
    assert [read(messages=MESSAGES, user_id=name)['user_id'] for name in (7.5, float('nan'), True)] == [''] * 3


@pytest.mark.parametrize(
    ('stamp', 'expected'),
    [
        ('2024-05-01 08:00:00 UTC', '2024-05-01T08:00:00+00:00'),
        *[(1714550400 * 1000**n, '2024-05-01T08:00:00+00:00') for n in range(4)],
        *[(str(1712010512 * 1000**n), '2024-04-01T22:28:32+00:00') for n in range(4)],  # which also begin like dates
        ('1714550400.5', '2024-05-01T08:00:00.500000+00:00'),
        ('20240501', '2024-05-01T00:00:00+00:00'),
        *[(stamp, '') for stamp in (True, float('nan'), float('inf'), 1e300, 10**400, '2024', '20240501080000')],
    ],
)
def test_time_stamps(stamp, expected):
    assert read(messages=MESSAGES, timestamp=stamp)['ended'] == expected


def test_other_layouts_need_other_paths_only(tmp_path):
    c = config(tmp_path)
    c.ingest.fields.messages, c.ingest.fields.content, c.ingest.fields.role = 'log.items', 'body.text', 'who'
    c.ingest.fields.user_role, c.ingest.fields.user = 'client', 'log.client.id'
    items = [dict(who={'user': 'client'}.get(role, role), body=dict(text=text)) for role, text in TURNS]
    write_lines(tmp_path / 'raw.jsonl', [dict(log=dict(items=items, client=dict(id='u7')))])
    assert nothing_is_lost(ingest.STAGE.run(c))
    (record,) = records(c)
    assert [(message['role'], message['content']) for message in record['messages']] == TURNS
    assert record['user_id'] == 'u7'


@pytest.mark.parametrize('ids', ['123', '113'])
def test_calls_of_a_serving_log_become_one_conversation(tmp_path, ids):
    texts = [text for _, text in TURNS]
    calls = [
        dict(id=ids[0], user='u', created=100, messages=[dict(role=r, content=t) for r, t in TURNS[:2]]),
        dict(id=ids[1], user='u', created=200, messages=[dict(role=r, content=t) for r, t in TURNS]),
        dict(id=ids[2], user='other', created=300, messages=[dict(role=r, content=t) for r, t in TURNS[:2]]),
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
    """As in a log whose system message contains the date, or whose calls end with the request."""
    texts = [*TURNS, ('user', 'In French!')]
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
    texts = [*TURNS, ('user', 'In French!'), ('assistant', 'Thé.')]
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
    conversations = records(c)
    order = [(record['user_id'], record['ended']) for record in conversations]
    assert order == sorted(order)
    assert np.mean([record['began'] != '' for record in conversations]) > 0.9
