"""Rows to batches: no row is skipped or repeated, whatever the number of processes, and errors reach the caller."""

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.loader import RowOrder, RowReader, batches
from rlhi_jax.data.plan import load_plan, make_plan, save_plan
from rlhi_jax.data.rows import Capacities, empty_row, stack
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.io.errors import UserError
from rlhi_jax.tokenizers.template import ChatTemplate


@pytest.fixture(scope='module')
def template(tmp_path_factory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp('template')
    tiny.write_tokenizer(folder)
    return ChatTemplate.load(folder)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 1000))
def test_row_order(rows, batch_rows, epochs, seed):
    """Every epoch is a permutation of all rows; only the last batch has padding."""
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
    """Whatever the number of processes, and whatever step they resume from, together they read the same batches."""
    trees = grow_trees(tiny.parsed(r) for r in tiny.preferences(30))
    write_shards(trees, tmp_path, trees_per_shard=7, manifest={})
    shards = Shards(tmp_path)
    assert [shards[i] for i in range(len(shards))] == trees
    (tmp_path / 'rows').mkdir()
    save_plan(make_plan(shards, template, Capacities(256, 128, 4)), tmp_path / 'rows', {})
    plan, _ = load_plan(tmp_path / 'rows')
    assert plan == make_plan(shards, template, Capacities(256, 128, 4))
    reader, order = RowReader(plan, shards, template), RowOrder(len(plan.rows), 4, 2, seed=3)
    assert -1 in order[order.num_steps - 1]
    for first_step in (0, 2):
        by_process = np.arange(4).reshape(processes, -1).tolist()
        options = dict(first_step=first_step, num_steps=order.num_steps, threads=3)
        streams = [list(batches(reader.__getitem__, order, local_rows=local, **options)) for local in by_process]
        for step, parts in enumerate(zip(*streams, strict=True), start=first_step):
            for index, number in enumerate(order[step]):
                part, expected = parts[index * processes // 4], stack([reader[number]])
                row = jax.tree.map(lambda x, i=index % (4 // processes): x[i : i + 1], part)
                jax.tree.map(np.testing.assert_array_equal, row, expected)
        assert {len(stream) for stream in streams} == {order.num_steps - first_step}


@pytest.mark.parametrize('error', [ValueError, IndexError, KeyError, StopIteration, UserError])
def test_an_error_in_a_row_is_not_the_end_of_the_data(error):
    def fail_at_5(row: int):
        if row == 5:
            raise error('row 5 is broken')
        return empty_row(Capacities(4, 2, 1))._replace(tokens_T=np.array([row]))

    stream = batches(fail_at_5, [[i] for i in range(9)], first_step=0, num_steps=9, local_rows=[0])
    for row in range(5):
        assert next(stream).tokens_BT.item() == row
    # Grain would take StopIteration for the end of the data, so it arrives as another error.
    with pytest.raises(RuntimeError if error is StopIteration else error):
        next(stream)
