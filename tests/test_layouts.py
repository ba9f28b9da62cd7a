"""Published layouts of preferences and conversations: all give the same, or are dropped for a reason of their own."""

import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_conversations import config, records, write_lines

from data_pipelines import ingest
from data_pipelines.preferences.files import read_preferences
from data_pipelines.preferences.layouts import parse_preferences, transcript
from data_pipelines.raw.formats import parse_conversation
from data_pipelines.raw.messages import NAMES
from data_pipelines.shards import STAGE
from rlhi_jax.data.shards import Shards
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.errors import UserError

EARLIER = [dict(role='user', content='Can you help me bake?'), dict(role='assistant', content='Sure, what?')]
QUESTION = 'How do I keep basil alive?'
ASKED = dict(role='user', content=QUESTION)
GOOD, BAD = 'Water it when the top soil dries.', 'Plants are nice.'
REPLIES = [dict(role='assistant', content=text) for text in (GOOD, BAD)]
SHAREGPT = [{'from': 'human', 'value': QUESTION}, {'from': 'gpt', 'value': GOOD}, {'from': 'gpt', 'value': BAD}]
PARTS = [dict(role='user', content=[dict(type='text', text=QUESTION)])]
HH = '\n\nHuman: Can you help me bake?\n\nAssistant: Sure, what?\n\nHuman: ' + QUESTION + '\n\nAssistant:'
GUANACO = f'### Human: {QUESTION}### Assistant: '
CHATML = f'<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n'

ONE_TURN = {
    'TRL': dict(prompt=[ASKED], chosen=REPLIES[:1], rejected=REPLIES[1:]),
    'TRL with implicit prompt': dict(chosen=[ASKED, REPLIES[0]], rejected=[ASKED, REPLIES[1]]),
    'texts': dict(prompt=QUESTION, chosen=GOOD, rejected=BAD),
    'UltraFeedback binarized': dict(
        prompt=QUESTION, chosen=[ASKED, REPLIES[0]], rejected=[ASKED, REPLIES[1]], messages=[ASKED, REPLIES[0]],
        score_chosen=8.5, score_rejected=4.0,
    ),
    'UltraFeedback': dict(
        instruction=QUESTION,
        completions=[dict(response=text, overall_score=score) for text, score in ((BAD, 2), ('So.', 3.5), (GOOD, 7))],
    ),
    'OpenAI': dict(input=dict(messages=[ASKED]), preferred_output=REPLIES[:1], non_preferred_output=REPLIES[1:]),
    'Alpaca': dict(instruction=QUESTION, input='', chosen=GOOD, rejected=BAD),
    'Orca': dict(question=QUESTION, system='', chosen=GOOD, rejected=BAD),
    'ShareGPT': dict(conversations=SHAREGPT[:1], chosen=SHAREGPT[1], rejected=SHAREGPT[2]),
    'HelpSteer2 preference': dict(prompt=QUESTION, response_1=BAD, response_2=GOOD, preference_strength=2),
    'HelpSteer3': dict(context=[ASKED], response1=GOOD, response2=BAD, overall_preference=-1),
    'Chatbot Arena': dict(conversation_a=[ASKED, REPLIES[1]], conversation_b=[ASKED, REPLIES[0]], winner='model_b'),
    'PKU-SafeRLHF': dict(prompt=QUESTION, response_0=GOOD, response_1=BAD, better_response_id=0),
    'SHP': dict(history=QUESTION, human_ref_A=BAD, human_ref_B=GOOD, labels=0),
    'Stack Exchange': dict(question=QUESTION, response_j=GOOD, response_k=BAD),
    'RewardBench': dict(prompt=QUESTION, chosen=GOOD, rejected=BAD, subset='chat', id=3),
    'content in parts': dict(prompt=PARTS, chosen=REPLIES[0], rejected=REPLIES[1]),
    'JSON text': dict(prompt=json.dumps([ASKED]), chosen=json.dumps(REPLIES[:1]), rejected=json.dumps(REPLIES[1:])),
    'guanaco': dict(chosen=GUANACO + GOOD, rejected=GUANACO + BAD),
    'ChatML text': dict(prompt=CHATML, chosen=f'{GOOD}', rejected=BAD),
}  # fmt: skip
SEVERAL_TURNS = {
    'hh strings': dict(chosen=f'{HH} {GOOD}', rejected=f'{HH} {BAD}'),
    'hh prompt': dict(prompt=HH, chosen=f' {GOOD}', rejected=f' {BAD}'),
    'TRL': dict(prompt=[*EARLIER, ASKED], chosen=REPLIES[:1], rejected=REPLIES[1:]),
    'Alpaca with history': dict(
        instruction=QUESTION, history=[[turn['content'] for turn in EARLIER]], chosen=GOOD, rejected=BAD
    ),
    'first turn as prompt': dict(
        prompt=EARLIER[0]['content'], chosen=[*EARLIER, ASKED, REPLIES[0]], rejected=[*EARLIER, ASKED, REPLIES[1]]
    ),
}
RATED = {
    'KTO': [dict(prompt=QUESTION, completion=text, label=label) for text, label in ((GOOD, True), (BAD, False))],
    'HelpSteer2': [dict(prompt=QUESTION, response=text, helpfulness=n) for text, n in ((BAD, 1), (GOOD, 4))],
    'Nectar': [dict(prompt=QUESTION, answers=[dict(answer=BAD, rank=7.0), dict(answer=GOOD, rank=1.0)])],
    'KTO with messages': [
        dict(prompt=[ASKED], completion=[reply], label=label) for reply, label in zip(REPLIES, (1, 0), strict=True)
    ],
}


def read(tmp_path, *lines, **options):
    write_lines(tmp_path / 'pairs.jsonl', lines)
    counts: Counter = Counter()
    return list(read_preferences([tmp_path / 'pairs.jsonl'], counts, **options)), counts


@pytest.mark.parametrize('layout', [*ONE_TURN, *RATED])
def test_every_layout_is_the_same_preference(layout, tmp_path):
    (found,), counts = read(tmp_path, *RATED.get(layout, [ONE_TURN.get(layout)]))
    assert (found.prompt, found.chosen, found.rejected) == (
        (('user', QUESTION),), (('assistant', GOOD),), (('assistant', BAD),)
    )  # fmt: skip
    assert counts['lines_read'] == counts['pairs_kept'] == 1


@pytest.mark.parametrize('layout', SEVERAL_TURNS)
def test_turns_are_cut_where_speakers_change(layout, tmp_path):
    (found,), _ = read(tmp_path, SEVERAL_TURNS[layout])
    assert found.prompt == (*((turn['role'], turn['content']) for turn in EARLIER), ('user', QUESTION))
    assert (found.chosen, found.rejected) == ((('assistant', GOOD),), (('assistant', BAD),))


def test_a_list_of_replies_makes_a_pair_for_each_combination(tmp_path):
    line = dict(id='7', prompt=QUESTION, chosen=[GOOD], rejected=[BAD, 'No.', GOOD], num_correct=1)
    found, counts = read(tmp_path, line | dict(rejected=[BAD, 'No.']))
    assert [(p.id, p.rejected[0][1]) for p in found] == [('7 1', BAD), ('7 2', 'No.')] and counts['pairs_kept'] == 2


def test_columns_with_a_meaning(tmp_path):
    """System texts are used, ties and images are dropped, and what is not used is counted."""
    base = ONE_TURN['texts']
    (found,), counts = read(tmp_path, base | dict(system='Be a pirate.', margin=1.5, tools=[dict(name='f')]))
    assert (found.system, found.margin) == ('Be a pirate.', 1.5)
    assert counts == {'lines_read': 1, 'pairs_kept': 1, 'tools_left_out': 1}
    system = [dict(role='developer', content='Be brief.'), dict(role='system', content='Be a pirate.')]
    (found,), _ = read(tmp_path, base | dict(system='Be a pirate.', prompt=[*system, ASKED]))
    assert found.system == 'Be a pirate.\n\nBe brief.'
    for extra, reason in (
        (dict(score_chosen=3, score_rejected=3), 'tie'),
        (dict(score_chosen=3, score_rejected=4), 'chosen_has_the_lower_score'),
        (dict(images=['x.png']), 'has_images'),
    ):
        found, counts = read(tmp_path, base | extra)
        assert not found and counts == {'lines_read': 1, f'dropped_{reason}': 1}


def test_ties_are_kept_on_demand(tmp_path):
    base = ONE_TURN['texts']
    arena = dict(
        conversation_a=[ASKED, dict(role='assistant', content=GOOD)],
        conversation_b=[ASKED, dict(role='assistant', content=BAD)],
        winner='tie (bothbad)',
    )
    lines = (
        base | dict(score_chosen=3, score_rejected=3),
        arena,
        dict(prompt='Hi', response_1='a', response_2='b', preference_strength=0),
        dict(prompt='Ho', response='a', helpfulness=2),
        dict(prompt='Ho', response='b', helpfulness=2),
        dict(prompt='Ho', response='c', helpfulness=3),
        base,
    )
    found, counts = read(tmp_path, *lines, keep_ties=True)
    assert [p.tied for p in found] == [True, True, True, False, False] and not counts['dropped_tie']
    found, counts = read(tmp_path, *lines)
    assert len(found) == 2 and counts['dropped_tie'] == 3
    (found,), _ = read(tmp_path, *lines[3:5], keep_ties=True)  # all ratings of a prompt are equal
    assert found.tied and (found.chosen[0][1], found.rejected[0][1]) == ('a', 'b')


def test_text_that_mentions_a_speaker_stays_text():
    for text in ('Human: is this a word?', 'Why does my log say "\n\nHuman: hi"?', 'Explain <|im_start|>user please'):
        assert transcript(text) == []


@pytest.mark.parametrize('kind', ['parquet', 'jsonl.zst', 'json'])
def test_pairs_in_every_form(kind, tmp_path):
    lines = [dict(ONE_TURN['TRL'], id=str(n), user_id=f'u{n}') for n in range(9)]
    path = tmp_path / f'train_prefs-00000-of-00001.{kind}'
    if kind == 'parquet':
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path, row_group_size=4)
    elif kind == 'json':
        path.write_text(json.dumps(lines, indent=1))
    else:
        with pyarrow.CompressedOutputStream(str(path), 'zstd') as file:
            file.write('\n'.join(map(json.dumps, lines)).encode())
    (tmp_path / 'test_prefs-00000-of-00001.jsonl').write_text('')
    c = config(tmp_path)
    c.data.pairs, c.data.shards = str(path if kind == 'json' else tmp_path), str(tmp_path / 'out' / 'shards')
    assert STAGE.run(c)['pairs_kept'] == 9 and len(Shards(tmp_path / 'out' / 'shards')) == 9
    c.data.split = 'validation'
    if kind != 'json':
        with pytest.raises(UserError, match='has no files for config.data.split=validation, only for test, train'):
            STAGE.run(c)


def test_the_stage_drops_ties_or_stores_them(tmp_path):
    lines = [dict(ONE_TURN['texts'], id='a'), dict(ONE_TURN['texts'], id='b', score_chosen=3, score_rejected=3)]
    write_lines(tmp_path / 'pairs.jsonl', lines)
    for ties, counts in (('drop', dict(dropped_tie=1, pairs_kept=1)), ('keep', dict(pairs_tied=1, pairs_kept=2))):
        c = config(tmp_path)
        c.data.pairs, c.data.shards, c.data.ties = str(tmp_path / 'pairs.jsonl'), str(tmp_path / ties), ties
        assert counts.items() <= STAGE.run(c).items()
        shards = Shards(tmp_path / ties)
        tied = {pair.id: pair.tied for index in range(len(shards)) for pair in shards[index].pairs}
        assert tied == {'a': False} | ({'b': True} if ties == 'keep' else {})


def test_what_is_not_read_is_said_once(tmp_path, capsys):
    folder = tmp_path / 'pairs'
    folder.mkdir()
    (folder / 'a.jsonl').write_text(json.dumps(ONE_TURN['TRL']))
    (folder / 'b.csv').write_text('prompt,chosen,rejected')
    c = config(tmp_path)
    c.data.pairs, c.data.shards = str(folder), str(tmp_path / 'shards')
    assert STAGE.run(c)['pairs_kept'] == 1
    assert capsys.readouterr().err.count('1 files beside') == 1


def test_an_empty_item_in_a_list_of_paths_is_refused(tmp_path):
    (tmp_path / 'a.jsonl').write_text(json.dumps(ONE_TURN['TRL']))
    c = config(tmp_path)
    for key, stage in (('raw', ingest.STAGE), ('pairs', STAGE)):
        for text in (f'{tmp_path}/a.jsonl,', f',{tmp_path}/a.jsonl', f'{tmp_path}/a.jsonl,,{tmp_path}/a.jsonl', ' '):
            c.data[key], c.data.shards = text, str(tmp_path / 'out')
            with pytest.raises(UserError, match=rf'config\.data\.{key}=.* has an empty item'):
                stage.run(c)
    (tmp_path / 'b.jsonl').write_text(json.dumps(ONE_TURN['Orca']))
    c.data.pairs, c.data.shards = f'{tmp_path}/a.jsonl, {tmp_path}/b.jsonl', str(tmp_path / 'out')
    assert STAGE.run(c)['pairs_kept'] == 2


CALL = dict(id='c1', type='function', function=dict(name='weather', arguments='{"city": "Lima"}'))
USER, REPLY, MORE = 'Weather in Lima?', 'It is 18 degrees.', 'In Fahrenheit, please.'
# Lists of messages that contain more than alternating turns, and the turns that are left.
LISTS = {
    'tool call and result': (
        [
            dict(role='user', content=USER), dict(role='assistant', content=None, tool_calls=[CALL]),
            dict(role='tool', tool_call_id='c1', content='18C'), dict(role='assistant', content=REPLY),
        ],
        [('user', USER), ('assistant', REPLY)],
    ),
    'text beside a call': (
        [
            dict(role='user', content=USER), dict(role='assistant', content='Let me see.', tool_calls=[CALL]),
            dict(role='tool', content='18C'), dict(role='assistant', content=REPLY),
        ],
        [('user', USER), ('assistant', f'Let me see.\n\n{REPLY}')],
    ),
    'function call': (
        [
            dict(role='user', content=USER), dict(role='assistant', content='', function_call=dict(name='weather')),
            dict(role='function', name='weather', content='18C'), dict(role='assistant', content=REPLY),
        ],
        [('user', USER), ('assistant', REPLY)],
    ),
    'ShareGPT with tools': (
        [
            {'from': 'human', 'value': USER}, {'from': 'function_call', 'value': '{}'},
            {'from': 'observation', 'value': '18C'}, {'from': 'gpt', 'value': REPLY},
        ],
        [('user', USER), ('assistant', REPLY)],
    ),
    'refusal': (
        [dict(role='user', content=USER), dict(role='assistant', content=None, refusal='I cannot.')],
        [('user', USER), ('assistant', 'I cannot.')],
    ),
    'two turns of the user': (
        [*(dict(role='user', content=text) for text in (USER, 'what now??')), dict(role='assistant', content=REPLY)],
        [('user', f'{USER}\n\nwhat now??'), ('assistant', REPLY)],
    ),
    'greeting': (
        [{'from': 'gpt', 'value': 'Welcome!'}, {'from': 'human', 'value': USER}, {'from': 'gpt', 'value': REPLY}],
        [('user', USER), ('assistant', REPLY)],
    ),
    'system in the middle': (
        [
            dict(role='user', content=USER), dict(role='system', content='Be formal.'),
            dict(role='assistant', content=REPLY),
        ],
        [('user', USER), ('assistant', REPLY)],
    ),
    'roles in capitals': (
        [dict(role='User', content=USER), dict(role='ASSISTANT', content=REPLY)],
        [('user', USER), ('assistant', REPLY)],
    ),
    'content in parts': (
        [dict(role='user', content=[dict(type='text', text=USER)]), dict(role='assistant', content=[dict(text=REPLY)])],
        [('user', USER), ('assistant', REPLY)],
    ),
}  # fmt: skip
FAULTS = {
    'unknown_role:chatgpt': [dict(role='user', content=USER), dict(role='chatgpt', content=REPLY)],
    'part_without_text': [dict(role='user', content=[dict(type='image_url')]), dict(role='assistant', content=REPLY)],
    'message_without_text': [dict(role='user', content=USER), dict(role='assistant', content=None)],
    'message_without_role': [dict(content=USER), dict(role='assistant', content=REPLY)],
    'empty_message': [dict(role='user', content=USER), dict(role='assistant', content=' ')],
}


def as_conversation(messages):
    parsed = parse_conversation(dict(messages=messages), NAMES)
    return parsed['system'], [(message['role'], message['content']) for message in parsed['messages']]


def as_preference(messages):
    """The last message is the chosen reply, unless it is part of a turn; then the whole list is the chosen side."""
    (found,) = parse_preferences(
        dict(chosen=messages, rejected=[*messages[:-1], dict(messages[-1], **OTHER)]), '', Counter()
    )
    return found.system, [*found.prompt, *found.chosen]


OTHER = dict(content='Other.', value='Other.')


@pytest.mark.parametrize('kind', LISTS)
def test_conversations_and_preferences_read_the_same_turns(kind):
    messages, turns = LISTS[kind]
    assert as_conversation(messages) == ('', turns)
    assert as_conversation(json.dumps(messages)) == ('', turns)
    assert as_preference(messages) == ('', turns)


@pytest.mark.parametrize('reason', FAULTS)
def test_conversations_and_preferences_refuse_the_same_lists(reason):
    for parse in (as_conversation, as_preference):
        with pytest.raises(BadRecord) as bad:
            parse(FAULTS[reason])
        assert bad.value.reason == reason


MESSAGE = st.builds(
    dict,
    role=st.sampled_from(('user', 'assistant', 'system', 'developer', 'tool', 'human', 'gpt', 'chatgpt')),
    content=st.one_of(st.none(), st.sampled_from(('a', 'b ', '', 'c\n')), st.just([dict(type='text', text='d')])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGE, max_size=7))
def test_the_two_readers_agree_on_any_list(messages):
    """A pair is made of the list and a further reply, so that both readers read the same messages."""
    whole = [*messages, dict(role='user', content='End?'), dict(role='assistant', content='Yes.')]
    try:
        expected: object = as_conversation(whole)
    except BadRecord as bad:
        expected = bad.reason
    try:
        found: object = as_preference(whole)
    except BadRecord as bad:
        found = bad.reason
    assert found == expected


def said(role, text):
    return dict(author=dict(role=role), content=dict(content_type='text', parts=[text]), create_time=1714550410.1)


EXPORTS = {
    'Open Assistant': dict(
        message_tree_id='t1', tree_state='ready_for_export',
        prompt=dict(
            message_id='m1', user_id='u1', text=USER, role='prompter', lang='en',
            replies=[
                dict(text='Worse.', role='assistant', rank=1, replies=[]),
                dict(text=REPLY, role='assistant', rank=0, replies=[dict(text=MORE, role='prompter', replies=[])]),
            ],
        ),
    ),
    'ChatGPT': dict(
        conversation_id='t1', create_time=1714550400.1, update_time=1714550460.1, current_node='d',
        mapping={
            'r': dict(id='r', message=None, parent=None, children=['a']),
            'a': dict(message=said('user', USER), parent='r', children=['b', 'c']),
            'b': dict(message=said('assistant', 'Worse.'), parent='a', children=[]),
            'c': dict(message=said('assistant', REPLY), parent='a', children=['d']),
            'd': dict(message=said('user', MORE), parent='c', children=[]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', EXPORTS)
def test_exports_that_are_trees_follow_the_path_that_people_saw(kind, tmp_path):
    write_lines(tmp_path / 'raw.jsonl', [EXPORTS[kind]])
    c = config(tmp_path, raw=str(tmp_path / 'raw.jsonl'))
    counts = ingest.STAGE.run(c)
    (record,) = records(c)
    assert record['id'] == 't1' and counts['messages_on_other_branches'] >= 1
    assert [message['content'] for message in record['messages']] == [USER, REPLY, MORE]


@pytest.mark.parametrize('kind', ['jsonl', 'parquet'])
def test_single_messages_of_a_tree_are_refused_with_the_name_of_the_trees_file(kind, tmp_path):
    root = dict(message_id='m1', parent_id=None, message_tree_id='m1', text=USER, role='prompter', rank=None, lang='en')
    lines = [root, dict(root, message_id='m2', parent_id='m1', text=REPLY, role='assistant', rank=0)]
    if kind == 'parquet':
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / 'raw.parquet')
    else:
        write_lines(tmp_path / 'raw.jsonl', lines)
    flags = [f'--config.data.raw={tmp_path}/raw.{kind}', f'--config.data.conversations={tmp_path}/conversations']
    done = tiny.run_program('data_pipelines.ingest', f'--config={tiny.CONFIG}', *flags, check=False)
    assert done.returncode == 2 and "'dropped_single_message_of_a_tree': 2" in done.stderr
    assert 'hf://OpenAssistant/oasst2/2023-11-05_oasst2_ready.trees.jsonl.gz' in done.stderr
