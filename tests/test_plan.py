"""Trees to rows: every pair is in one row or dropped, with as much context as fits."""

import dataclasses
import re
import time

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhi_jax.data.encode import Piece, TreeEncoder
from rlhi_jax.data.grow import grow_trees, preferences_of
from rlhi_jax.data.loader import RowReader
from rlhi_jax.data.plan import check_positions, make_plan
from rlhi_jax.data.rows import Capacities, lay_out, size
from rlhi_jax.io.errors import UserError
from rlhi_jax.tokenizers.template import ChatTemplate, Context


class Trees(list):
    """Interactions in memory, with the digest that a plan needs."""

    digest = 'in memory'


@pytest.fixture(scope='module')
def template(tmp_path_factory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp('template')
    tiny.write_tokenizer(folder)
    loaded = ChatTemplate.load(folder)
    loaded.folder = folder
    return loaded


def turns_before(row, tokenizer, last: int) -> list[tuple[str, str]]:
    """Roles and texts on the path to a token of a row, read off its arrays: what the model sees of a reply."""
    path = [last]
    while row.back_T[path[-1]]:
        path.append(path[-1] - row.back_T[path[-1]])
    names = {id_: name for name, id_ in tokenizer.control.items()}
    text = ''.join(names.get(i) or tokenizer.decode([i]) for i in row.tokens_T[path[::-1]].tolist())
    assert [row.position_T[i] for i in path] == list(range(len(path)))[::-1]
    assert re.sub(r'<\|im_start\|>\w+\n[^<]*<\|im_end\|>\n?', '', text) == '', text
    return re.findall(r'<\|im_start\|>(\w+)\n([^<]*)<\|im_end\|>', text)


@given(st.integers(0, 2**32 - 1))
def test_a_tree_gives_back_the_preferences_that_it_was_grown_from(seed):
    preferences = [tiny.parsed(record) for record in tiny.branching_preferences(np.random.default_rng(seed))]
    returned = [preference for tree in grow_trees(preferences) for preference in preferences_of(tree)]
    assert sorted(returned, key=lambda each: each.id) == sorted(preferences, key=lambda each: each.id)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(60, 400), st.integers(20, 120), st.integers(1, 6))
def test_every_pair_is_in_one_row_or_dropped(template, seed, tokens, scored, pairs):
    records = tiny.branching_preferences(np.random.default_rng(seed))
    preferences = [tiny.parsed(r) for r in records]
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
        is_pair = row.pair_id_P >= 0
        assert row.pair_id_P[is_pair].tolist() == plan.pair_ids(number)
        for pair, chosen, rejected in zip(
            *(column[is_pair] for column in (row.pair_id_P, row.pair_chosen_P, row.pair_rejected_P)), strict=True
        ):
            record, starts = by_id[plan.pair_names[pair]], set()
            for side, reply in (('chosen', chosen), ('rejected', rejected)):
                seen = turns_before(row, template.tokenizer, row.reply_last_R[reply])
                whole = [(turn['role'], turn['content']) for turn in (*record['prompt'], *record[side])]
                whole = whole[-len(seen) :]
                persona, first = seen[0][1].split('\n\n')[0], whole[0]
                assert record['persona'] in persona, 'the persona is lost'
                assert seen[0][1].endswith(first[1]) and seen[0][0] == first[0] == 'user'
                assert seen[1:] == whole[1:] and len(seen) > len(record[side]), 'the latest user turn is lost'
                starts.add(len(seen) - len(record[side]))
                words = [turn['content'] for turn in record[side] if turn['role'] == 'assistant']
                assert (row.slot_reply_S == reply).sum() == sum(map(len, words)) + len(words), 'a byte and an end each'
            assert len(starts) == 1
            shortened += starts.pop() < len(record['prompt'])
    assert plan.counts['pairs_with_shortened_context'] == shortened


def test_context_is_shortened_as_little_as_need_be(template):
    """In shorter rows the oldest exchanges are left out first; a pair without its last user turn is dropped instead."""
    turns = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i}'} for i in range(7)]
    record = dict(prompt=turns, chosen='yes', rejected='no', persona='Likes tea.')
    trees = Trees(grow_trees([tiny.parsed(record)]))
    encoder = TreeEncoder(trees[0], template)
    for start in (0, 2, 4, 6):
        need = size(encoder.encode(Piece(start, (0,)))).tokens
        for limit, expected in ((need, start), (need - 1, start + 2)):
            if expected > 6:
                with pytest.raises(UserError, match="'longer_than_a_row': 1"):
                    make_plan(trees, template, Capacities(limit, 64, 1))
                continue
            plan = make_plan(trees, template, Capacities(limit, 64, 1))
            assert plan.rows == [[(0, Piece(expected, (0,)), 0)]]
            assert plan.counts['pairs_with_shortened_context'] == (expected > 0)


@pytest.mark.parametrize('exchanges', [5, 6, 8])
def test_pairs_of_a_long_conversation_share_a_context(template, exchanges):
    """Each keeps at least half of the exchanges that would fit if it were alone, and all of them if they fit."""
    turns = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i:02}'} for i in range(24)]
    records = [
        dict(id=str(at), prompt=turns[: at + 1], chosen='Better.', rejected=[turns[at + 1]]) for at in range(0, 24, 2)
    ]
    trees = Trees(grow_trees([tiny.parsed(record) for record in records]))
    encoder = TreeEncoder(trees[0], template)
    limit = size(encoder.encode(Piece(0, (exchanges - 1,)))).tokens
    plan = make_plan(trees, template, Capacities(limit, 1024, 16))
    pieces = [piece for row in plan.rows for _, piece, _ in row]
    assert 2 * len(pieces) <= len(records), 'later pairs share their context as well'
    for piece in pieces:
        for pair in piece.pairs:
            prompt = encoder.tree.path(encoder.tree.pairs[pair].prompt)
            starts = [turn for turn in prompt[::2] if size(encoder.encode(Piece(turn, (pair,)))).tokens <= limit]
            kept = prompt[::2][prompt[::2].index(piece.start) :]
            assert 2 * len(kept) >= len(starts)
            assert piece.start == 0 or starts[0] != 0


def test_what_is_shared_is_stored_once(template):
    """If the conversation continued after a rejected reply, it is on the trunk of the later pair."""
    user, other = dict(role='user', content='Hi'), dict(role='assistant', content='Go away')
    both = dict(chosen='Hello', rejected=[other], persona='Likes tea.')
    first = both | dict(id='a', prompt=[user])
    later = both | dict(id='b', prompt=[user, other, dict(role='user', content='Be polite')])
    preferences = [tiny.parsed(r) for r in (first, later)]
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


def test_conversations_longer_than_the_model_are_refused(template):
    """By the length of a path, not of a row: a row of many short conversations is fine."""
    turns = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i}'} for i in range(9)]
    records = [dict(id=str(n), prompt=turns, chosen='yes', rejected='no', user_id=f'u{n}') for n in range(3)]
    trees = Trees(grow_trees([tiny.parsed(record) for record in records]))
    plan = make_plan(trees, template, Capacities(4096, 1024, 16))
    rows = [lay_out(TreeEncoder(tree, template).encode(Piece(0, (0,)))) for tree in trees]
    longest = max(int(row.position_T.max()) + 1 for row in rows)
    check_positions(plan, trees, template, most=longest)
    message = f'has {longest} tokens, .* at most {longest - 1}: lower config.rows.tokens from 4096 to {longest - 1}'
    with pytest.raises(UserError, match=message):
        check_positions(plan, trees, template, most=longest - 1)


@pytest.mark.parametrize('turns', [7, 8, 9, 30, 31, 201])
def test_long_conversations_have_the_tokens_of_one_rendering(template, turns):
    """Long conversations are rendered in short pieces; transformers renders them whole."""
    transformers = pytest.importorskip('transformers')
    folder = template.folder
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i}'} for i in range(turns)]
    roles = tuple(turn['role'] for turn in chat)
    pieces = []
    for turn in range(1, turns + 1):
        if roles[turn - 1] == 'assistant':
            pieces += template.generation_prompt(roles[: turn - 1], Context('Be kind.', 'Likes tea.'))
        pieces += template.encode(roles[:turn], chat[turn - 1]['content'], Context('Be kind.', 'Likes tea.')).ids
    system = dict(role='system', content='Be kind.')
    assert pieces == theirs.apply_chat_template([system, *chat], persona='Likes tea.', return_dict=False)


def test_time_grows_with_the_number_of_turns_and_not_much_faster(template):
    def seconds(turns: int) -> float:
        chat = [{'role': ('user', 'assistant')[i % 2], 'content': f'turn {i}'} for i in range(turns)]
        trees = Trees(grow_trees([tiny.parsed(dict(prompt=chat, chosen='yes', rejected='no'))]))
        began = time.perf_counter()
        make_plan(trees, template, Capacities(512, 256, 4))
        return time.perf_counter() - began

    seconds(101)  # the first call renders the template
    assert seconds(2001) < 0.5 or seconds(2001) < 3 * 20 * seconds(101)
