"""Preferences to shards to rows: everything is counted, nothing is lost or seen twice, and reruns change no byte."""

import dataclasses
import gzip
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import data_pipelines.shards
import rlhi_jax.data.tree
from data_pipelines.shards import by_tree, read_preferences
from rlhi_jax.data.encode import Piece, TreeEncoder
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.loader import RowOrder, RowReader, batches
from rlhi_jax.data.plan import load_plan, make_plan, save_plan
from rlhi_jax.data.rows import Capacities, size
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.errors import UserError
from rlhi_jax.files import new_folder
from rlhi_jax.tokenizers.template import ChatTemplate

USER = {'role': 'user', 'content': 'Hi'}
REPLY = {'role': 'assistant', 'content': 'Hello'}
OTHER = {'role': 'assistant', 'content': 'Go away'}
GOOD = dict(prompt=[USER], chosen=[REPLY], rejected=[OTHER])

DROPPED = {
    'not_json': ['no', '{"prompt": ', b'{"prompt": "\xff"}', '[' * 100_000],
    'not_an_object': ['[]', '"text"', 'null', '3'],
    'chosen_or_rejected_missing': [{}, dict(prompt='a', chosen='b'), dict(prompt='a', rejected='b')],
    'turns_not_a_list_of_messages': [GOOD | {'chosen': 3}, GOOD | {'rejected': None}, GOOD | {'prompt': ['Hi']}],
    'message_without_role_or_text': [
        GOOD | {'prompt': [{'content': 'Hi'}]},
        GOOD | {'chosen': [{'role': 'assistant', 'content': None}]},
        GOOD | {'chosen': [{'role': 'assistant', 'content': ['parts']}]},
    ],
    'lone_surrogate': ['{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}', GOOD | {'persona': '\ud800'}],
    'prompt_does_not_end_in_a_user_turn': [
        GOOD | {'prompt': []},
        GOOD | {'prompt': [USER, REPLY]},
        GOOD | {'prompt': [{'role': 'system', 'content': 'Be kind.'}]},
        dict(chosen='b', rejected='c'),
    ],
    'reply_does_not_end_in_an_assistant_turn': [GOOD | {'chosen': []}, GOOD | {'rejected': [OTHER, USER]}],
    'roles_do_not_alternate': [
        GOOD | {'prompt': [USER, USER]},
        GOOD | {'prompt': [REPLY, USER]},
        GOOD | {'prompt': [USER, {'role': 'system', 'content': 'Late'}, USER]},
        GOOD | {'rejected': [OTHER, OTHER]},
    ],
    'empty_message': [GOOD | {'prompt': ' \n'}, GOOD | {'chosen': ''}, GOOD | {'rejected': '\t'}],
    'chosen_equals_rejected': [GOOD | {'rejected': [REPLY]}, GOOD | {'rejected': 'Hello \n'}],
    'weight_not_a_number_from_0': [
        GOOD | {'weight': w} for w in ('1', True, [], -1, float('nan'), float('inf'), 1e39, 10**400)
    ],
    'id_not_text': [GOOD | {'id': ['a']}, GOOD | {'id': True}, GOOD | {'id': 1.5}],
    'persona_not_text': [GOOD | {'persona': 3}, GOOD | {'persona': {'likes': 'tea'}}],
    'user_id_not_text': [GOOD | {'user_id': {}}],
    'id_seen_before': [],  # has a test of its own
}


def as_line(record) -> bytes:
    return record if isinstance(record, bytes) else (record if isinstance(record, str) else json.dumps(record)).encode()


def read(tmp_path: Path, records, name: str = 'pairs.jsonl'):
    """Preferences of some records, and the counts."""
    (tmp_path / name).write_bytes(b'\n'.join(map(as_line, records)))
    counts = Counter()
    return list(read_preferences([tmp_path / name], counts)), dict(counts)


@pytest.mark.parametrize(('reason', 'bad'), DROPPED.items(), ids=DROPPED)
def test_bad_records_are_counted_by_reason(reason, bad, tmp_path):
    kept, counts = read(tmp_path, [GOOD, *bad, '', GOOD, '  '])
    assert [p.id for p in kept] == ['pairs.jsonl:1', f'pairs.jsonl:{len(bad) + 3}']
    dropped = {f'dropped_{reason}': len(bad)} if bad else {}
    assert counts == {'lines_read': len(bad) + 2, 'pairs_kept': 2, **dropped}


def test_every_reason_is_tested():
    sources = [Path(module.__file__).read_text() for module in (rlhi_jax.data.tree, data_pipelines.shards)]
    reasons = set(re.findall(r"BadRecord\(f?'([^']*)'\)", '\n'.join(sources)))
    reasons |= {f'{name}_not_text' for name in ('id', 'persona', 'user_id')}
    assert reasons - {'{name}_not_text'} == set(DROPPED)


def test_ids_seen_before(tmp_path):
    """The first preference of an id is kept; lines without ids are told apart even in files of one name."""
    kept, counts = read(
        tmp_path, [GOOD | {'id': 'a', 'weight': 2}, GOOD | {'id': 'a'}, GOOD | {'id': 7, 'weight': None}]
    )
    assert [(p.id, p.weight) for p in kept] == [('a', 2.0), ('7', 1.0)]
    assert counts == {'lines_read': 3, 'pairs_kept': 2, 'dropped_id_seen_before': 1}
    paths = [tmp_path / day / 'pairs.jsonl' for day in ('monday', 'tuesday')]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(as_line(GOOD))
    counts = Counter()
    assert len({p.id for p in read_preferences(paths, counts)}) == 2
    assert counts == {'lines_read': 2, 'pairs_kept': 2}


def test_formats(tmp_path):
    """Strings, TRL's implicit prompts (explicit ones too, and null), and .jsonl.gz mean the same."""
    implicit = dict(chosen=[USER, REPLY, USER, REPLY], rejected=[USER, REPLY, USER, OTHER])
    explicit = dict(prompt=[USER, REPLY, USER], chosen=[REPLY], rejected=[OTHER])
    plain = dict(prompt='Hi', chosen=' Hello', rejected='Go away\n')
    system = dict(GOOD, prompt=[{'role': 'system', 'content': 'Be kind.'}, USER], persona='Likes tea.', user_id=4)
    records = [implicit, implicit | {'prompt': None}, explicit, plain, GOOD, system]
    kept, _ = read(tmp_path, records)
    texts = [dataclasses.replace(p, id='') for p in kept]
    assert texts[0] == texts[1] == texts[2] and texts[3] == texts[4]
    assert texts[0].prompt == (('user', 'Hi'), ('assistant', 'Hello'), ('user', 'Hi'))
    assert texts[0].chosen == (('assistant', 'Hello'),) and texts[0].rejected == (('assistant', 'Go away'),)
    assert (texts[5].system, texts[5].persona, texts[5].user_id) == ('Be kind.', 'Likes tea.', '4')
    (tmp_path / 'zipped.jsonl.gz').write_bytes(gzip.compress(b'\n'.join(map(as_line, records))))
    assert [dataclasses.replace(p, id='') for p in read_preferences([tmp_path / 'zipped.jsonl.gz'], Counter())] == texts


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_reruns(tmp_path):
    """A rerun keeps what is there, other input needs --overwrite, and the same input gives the same bytes anywhere."""
    first, second = tmp_path / 'a', tmp_path / 'b'
    for folder in (first, second):
        folder.mkdir()
        tiny.prepare(folder, pairs=8)
    assert folder_bytes(first / 'shards') == folder_bytes(second / 'shards')
    assert folder_bytes(first / 'rows') == folder_bytes(second / 'rows')

    def run(stage: str, *flags: str, check: bool = True):
        names = {'data.pairs': 'pairs.jsonl', 'data.shards': 'shards', 'data.rows': 'rows', 'model.path': 'model'}
        paths = [f'--config.{key}={first / name}' for key, name in names.items()]
        return tiny.run_program(f'data_pipelines.{stage}', f'--config={tiny.CONFIG}', *paths, *flags, check=check)

    before = {path: path.stat().st_mtime_ns for path in (first / 'shards').iterdir()}
    assert 'up to date' in run('shards').stdout
    assert {path: path.stat().st_mtime_ns for path in (first / 'shards').iterdir()} == before
    with gzip.open(first / 'more.jsonl.gz', 'wb') as file:
        file.write(as_line(GOOD | {'id': 'more'}))
    both = f'--config.data.pairs={first / "pairs.jsonl"},{first / "more.jsonl.gz"}'
    refused = run('shards', both, check=False)
    assert refused.returncode == 2 and '--overwrite' in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in (first / 'shards').iterdir()} == before
    pairs = Shards(second / 'shards').manifest['counts']['pairs_kept']
    assert f'"pairs_kept": {pairs + 1}' in run('shards', both, '--overwrite').stdout
    assert Shards(first / 'shards').manifest['counts']['pairs_kept'] == pairs + 1
    # The rows were made for the old shards.
    assert run('rows', check=False).returncode == 2
    run('rows', '--overwrite')
    assert load_plan(first / 'rows')[0].pair_names[-1] == 'more' and len(list(tmp_path.rglob('*.tmp'))) == 0


def test_two_runs_do_not_write_one_folder(tmp_path):
    with new_folder(tmp_path / 'out') as ours:
        (ours / 'manifest.json').write_text('ours')
        with pytest.raises(UserError, match='being written by another run'), new_folder(tmp_path / 'out'):
            pass
    assert (tmp_path / 'out' / 'manifest.json').read_text() == 'ours'
    with new_folder(tmp_path / 'out', overwrite=True) as again:
        (again / 'manifest.json').write_text('again')
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_killed_stage_leaves_no_output(tmp_path):
    tiny.write_preferences(tmp_path / 'pairs.jsonl', 20_000)
    shards, temporary = tmp_path / 'shards', tmp_path / '.shards.tmp'
    flags = [f'--config={tiny.CONFIG}', f'--config.data.pairs={tmp_path / "pairs.jsonl"}']
    flags += [f'--config.data.shards={shards}', '--config.data.trees_per_shard=100']
    command = [sys.executable, '-m', 'data_pipelines.shards', *flags]
    process = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL)
    while not list(temporary.glob('*.array_record')):
        assert process.poll() is None, 'ended before its time'
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert temporary.exists() and not shards.exists()
    tiny.write_preferences(tmp_path / 'pairs.jsonl', 50)
    tiny.run_program('data_pipelines.shards', *flags)
    assert not temporary.exists() and sorted(folder_bytes(shards)) == [
        'interactions-00000.array_record',
        'manifest.json',
    ]


class Trees(list):
    """Interactions in memory, with what a plan asks of shards."""

    digest = 'in memory'


@pytest.fixture(scope='module')
def template(tmp_path_factory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp('template')
    tiny.write_tokenizer(folder)
    return ChatTemplate.load(folder)


def draw_records(rng: np.random.Generator) -> list[dict]:
    """Random preferences of which half go on from an earlier one's rejected reply, so that contexts grow long."""

    def text(role: str, mark: str = '') -> dict:
        return {'role': role, 'content': ' '.join(rng.choice(tiny.WORDS, rng.integers(1, 6))) + mark}

    records: list[dict] = []
    for i in range(int(rng.integers(1, 12))):
        prompt, user = [text('user')], f'user{rng.integers(2)}'
        if records and rng.random() < 0.6:
            earlier = records[int(rng.integers(len(records)))]
            prompt, user = [*earlier['prompt'], *earlier['rejected'], text('user')], earlier['user_id']
        replies = dict(chosen=[text('assistant')], rejected=[text('assistant', '!')])
        if rng.random() < 0.2:
            replies['rejected'] += [text('user'), text('assistant', '?')]
        records.append(dict(id=f'p{i}', prompt=prompt, user_id=user, persona=f'{user} likes tea.', **replies))
    return records


def turns_before(row, tokenizer, last: int) -> list[tuple[str, str]]:
    """Roles and texts on the path to a row's token, read off its arrays: what the model sees of a reply."""
    path = [last]
    while row['back'][path[-1]]:
        path.append(path[-1] - row['back'][path[-1]])
    names = {id_: name for name, id_ in tokenizer.control.items()}
    text = ''.join(names.get(i) or tokenizer.decode([i]) for i in row['tokens'][path[::-1]].tolist())
    assert [row['position'][i] for i in path] == list(range(len(path)))[::-1]
    assert re.sub(r'<\|im_start\|>\w+\n[^<]*<\|im_end\|>\n?', '', text) == '', text
    return re.findall(r'<\|im_start\|>(\w+)\n([^<]*)<\|im_end\|>', text)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(60, 400), st.integers(20, 120), st.integers(1, 6))
def test_every_pair_is_in_one_row_or_dropped(template, seed, tokens, scored, pairs):
    records = draw_records(np.random.default_rng(seed))
    preferences = [rlhi_jax.data.tree.parse_preference(json.dumps(r), '') for r in records]
    trees, capacities = Trees(grow_trees(preferences)), Capacities(tokens, scored, pairs)
    assert sum(len(tree.pairs) for tree in trees) == len(records)
    try:
        plan = make_plan(trees, template, capacities)
    except UserError as error:
        assert f"'longer_than_a_row': {len(records)}" in str(error)
        return
    assert (
        plan.counts['pairs_read']
        == len(records)
        == len(plan.pair_names) + plan.counts.get('dropped_longer_than_a_row', 0)
    )
    numbers = [number for row in range(len(plan.rows)) for number in plan.pair_ids(row)]
    assert sorted(numbers) == list(range(len(plan.pair_names))) and len(set(plan.pair_names)) == len(numbers)

    by_id, shortened = {record['id']: record for record in records}, 0
    reader = RowReader(plan, trees, template)
    for number in range(len(plan.rows)):
        row = reader[number]  # raises if the pieces do not fit
        there = row['pair_id'] >= 0
        assert row['pair_id'][there].tolist() == plan.pair_ids(number)
        for pair, chosen, rejected in zip(
            *(row[f'pair_{name}'][there] for name in ('id', 'chosen', 'rejected')), strict=True
        ):
            record, starts = by_id[plan.pair_names[pair]], set()
            for side, reply in (('chosen', chosen), ('rejected', rejected)):
                seen = turns_before(row, template.tokenizer, row['reply_last'][reply])
                whole = [(turn['role'], turn['content']) for turn in (*record['prompt'], *record[side])]
                whole = whole[-len(seen) :]
                persona, first = seen[0][1].split('\n\n')[0], whole[0]
                assert record['persona'] in persona, 'the persona is lost'
                assert seen[0][1].endswith(first[1]) and seen[0][0] == first[0] == 'user'
                assert seen[1:] == whole[1:] and len(seen) > len(record[side]), 'the latest user turn is lost'
                starts.add(len(seen) - len(record[side]))
                words = [turn['content'] for turn in record[side] if turn['role'] == 'assistant']
                assert (row['slot_reply'] == reply).sum() == sum(map(len, words)) + len(words), 'a byte and an end each'
            assert len(starts) == 1
            shortened += starts.pop() < len(record['prompt'])
    assert plan.counts['pairs_with_shortened_context'] == shortened


def test_context_is_shortened_as_little_as_need_be(template):
    """With ever less room the oldest exchanges go first; the last user turn goes never, the pair is dropped instead."""
    turns = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i}'} for i in range(7)]
    record = json.dumps(dict(prompt=turns, chosen='yes', rejected='no', persona='Likes tea.'))
    trees = Trees(grow_trees([rlhi_jax.data.tree.parse_preference(record, 'a')]))
    encoder = TreeEncoder(trees[0], template)
    for start in (0, 2, 4, 6):
        need = size(encoder.encode(Piece(start, (0,)))).tokens
        for room, expected in ((need, start), (need - 1, start + 2)):
            if expected > 6:
                with pytest.raises(UserError, match="'longer_than_a_row': 1"):
                    make_plan(trees, template, Capacities(room, 64, 1))
                continue
            plan = make_plan(trees, template, Capacities(room, 64, 1))
            assert plan.rows == [[(0, Piece(expected, (0,)), 0)]]
            assert plan.counts['pairs_with_shortened_context'] == (expected > 0)


@pytest.mark.parametrize('exchanges', [5, 6, 8])
def test_pairs_of_a_long_conversation_share_a_context(template, exchanges):
    """Each keeps at least half of the exchanges that it has room for alone, and all of them if they fit."""
    turns = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i:02}'} for i in range(24)]
    records = [
        json.dumps(dict(id=str(at), prompt=turns[: at + 1], chosen='Better.', rejected=[turns[at + 1]]))
        for at in range(0, 24, 2)
    ]
    trees = Trees(grow_trees([rlhi_jax.data.tree.parse_preference(record, '') for record in records]))
    encoder = TreeEncoder(trees[0], template)
    room = size(encoder.encode(Piece(0, (exchanges - 1,)))).tokens
    plan = make_plan(trees, template, Capacities(room, 1024, 16))
    pieces = [piece for row in plan.rows for _, piece, _ in row]
    assert 2 * len(pieces) <= len(records), 'later pairs share their context as well'
    for piece in pieces:
        for pair in piece.pairs:
            prompt = encoder.tree.path(encoder.tree.pairs[pair].prompt)
            starts = [turn for turn in prompt[::2] if size(encoder.encode(Piece(turn, (pair,)))).tokens <= room]
            kept = prompt[::2][prompt[::2].index(piece.start) :]
            assert 2 * len(kept) >= len(starts)
            assert piece.start == 0 or starts[0] != 0


def test_what_is_shared_is_stored_once(template):
    """A rejected reply that the conversation went on from lies on the trunk of the later pair."""
    first = GOOD | {'id': 'a', 'prompt': [USER], 'persona': 'Likes tea.'}
    later = GOOD | {
        'id': 'b',
        'prompt': [USER, OTHER, {'role': 'user', 'content': 'Be polite'}],
        'persona': 'Likes tea.',
    }
    preferences = [rlhi_jax.data.tree.parse_preference(json.dumps(r), '') for r in (first, later)]
    (tree,) = grow_trees(preferences)
    assert tree.pairs[0].rejected in tree.path(tree.pairs[1].prompt)
    assert len(tree.messages) == 6

    def tokens(*preferences) -> int:
        (tree,) = grow_trees(preferences)
        return size(TreeEncoder(tree, template).encode(Piece(0, tuple(range(len(tree.pairs)))))).tokens

    together, apart = tokens(*preferences), [tokens(preference) for preference in preferences]
    reply = len('Hello') + len(['<|im_end|>', '\n'])  # all that the first pair adds; tokens are bytes
    assert together == apart[1] + reply < sum(apart)
    assert len(grow_trees([preferences[0], dataclasses.replace(preferences[1], persona='Likes coffee.')])) == 2
    assert len(grow_trees([preferences[0], dataclasses.replace(preferences[1], user_id='another')])) == 2


@pytest.mark.parametrize('seed', range(20))
def test_preferences_of_a_tree_are_brought_together_on_disk(seed, tmp_path):
    records = draw_records(np.random.default_rng(seed))
    preferences = [rlhi_jax.data.tree.parse_preference(json.dumps(record), '') for record in records]
    groups = list(by_tree(iter(preferences), tmp_path / 'scratch'))
    assert [tree for group in groups for tree in grow_trees(group)] == grow_trees(preferences)
    assert all(len(grow_trees(group)) == 1 for group in groups) and not (tmp_path / 'scratch').exists()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 1000))
def test_row_order(rows, batch_rows, epochs, seed):
    """Every epoch is a permutation of all rows; padding stands at the very end only."""
    order = RowOrder(rows, batch_rows, epochs, seed)
    seen = [row for step in range(order.num_steps) for row in order[step]]
    assert seen[rows * epochs :] == [-1] * (-rows * epochs % batch_rows)
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    again = RowOrder(rows, batch_rows, epochs, seed)
    assert [again[step] for step in reversed(range(order.num_steps))] == [
        order[step] for step in reversed(range(order.num_steps))
    ]


def test_row_order_is_shuffled_anew():
    seen = [RowOrder(100, 100, 2, seed)[epoch] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in [*seen, range(100)]}) == 5


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_read_the_same_rows(processes, template, tmp_path):
    """Whatever the number of processes, and from wherever they go on, together they read the same batches."""
    trees = grow_trees(rlhi_jax.data.tree.parse_preference(json.dumps(r), '') for r in tiny.preferences(30))
    write_shards(trees, tmp_path, trees_per_shard=7, manifest={})
    shards = Shards(tmp_path)
    assert [shards[i] for i in range(len(shards))] == trees
    save_plan(make_plan(shards, template, Capacities(256, 128, 4)), tmp_path / 'rows', {})
    plan, _ = load_plan(tmp_path / 'rows')
    assert plan == make_plan(shards, template, Capacities(256, 128, 4))
    reader, order = RowReader(plan, shards, template), RowOrder(len(plan.rows), 4, 2, seed=3)
    assert -1 in order[order.num_steps - 1]
    for first_step in (0, 2):
        places = np.arange(4).reshape(processes, -1).tolist()
        options = dict(first_step=first_step, num_steps=order.num_steps, threads=3)
        streams = [list(batches(reader.__getitem__, order, local_rows=own, **options)) for own in places]
        for step, parts in enumerate(zip(*streams, strict=True), start=first_step):
            for place, row in enumerate(order[step]):
                part, expected = parts[place * processes // 4], reader[row]
                at = place % (4 // processes)
                assert all(np.array_equal(part[name][at], expected[name]) for name in expected)
        assert {len(stream) for stream in streams} == {order.num_steps - first_step}


@pytest.mark.parametrize('error', [ValueError, IndexError, KeyError, StopIteration, UserError])
def test_an_error_in_a_row_is_not_the_end_of_the_data(error):
    def fail_at_5(row: int):
        if row == 5:
            raise error('row 5 is broken')
        return {'row': np.array([row])}

    stream = batches(fail_at_5, [[i] for i in range(9)], first_step=0, num_steps=9, local_rows=[0])
    for row in range(5):
        assert next(stream)['row'].item() == row
    # StopIteration would pass for the end of the data; it comes as another error.
    with pytest.raises(RuntimeError if error is StopIteration else error):
        next(stream)
