"""Tree attention, in XLA and as TPU kernels, against the rule written out densely."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trees import forest_that_fits

from rlhi_jax.data.rows import Capacities, lay_out, pack
from rlhi_jax.models import attention_tpu, attention_xla
from rlhi_jax.models.attention import tree_attention
from rlhi_jax.models.tree_blocks import BLOCK, Logits, Mask, live_blocks

WIDTH = 16
BACKENDS = {'xla': (attention_xla, {}), 'tpu': (attention_tpu, {'interpret': True})}
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}
PLAIN, CAPPED = Logits(WIDTH**-0.5), Logits(0.5, 2.0)


def seen_by(mask: Mask) -> np.ndarray:
    """Who sees whom, computed token by token, [B, Q, S]."""
    extent, *window = (x if x is None else np.asarray(x) for x in mask)
    distance = np.arange(extent.shape[1])[:, None] - np.arange(extent.shape[1])
    seen = (distance >= 0) & (distance < extent[:, None, :])
    if window[0] is not None:
        position, lowest = window
        seen &= position[:, None, :] >= lowest[:, :, None]
    return seen


def dense(logits, q, k, v, seen):
    """Plain softmax attention in float32 under the whole mask."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scaled = jnp.einsum('BQNH,BSNH->BNQS', q, k, precision='highest') * logits.scale
    if logits.cap:
        scaled = logits.cap * jnp.tanh(scaled / logits.cap)
    weights = jax.nn.softmax(jnp.where(seen[:, None], scaled, -jnp.inf), axis=-1)
    return jnp.einsum('BNQS,BSNH->BQNH', weights, v, precision='highest')


def random_mask(rng, tokens, rows, *, window: bool = False) -> Mask:
    """Rows of random forests with padding at the end, and a random window."""
    capacities = Capacities(tokens, 4 * tokens, tokens)
    packed = []
    for _ in range(rows):
        parts = []
        while True:
            more = [lay_out(tree) for tree in forest_that_fits(rng, capacities)]
            if sum(len(part.tokens_T) for part in parts + more) > tokens:
                break
            parts += more
            if rng.random() < 0.1:
                break
        packed.append(pack(parts, capacities))
    extent, position = (jnp.stack([getattr(row, name) for row in packed]) for name in ('extent_T', 'position_T'))
    return Mask(extent, position, position - int(rng.integers(0, 100))) if window else Mask(extent)


def inputs_of(rng, shape, heads, kv_heads, dtype):
    counts = (heads, kv_heads, kv_heads, heads)
    return tuple(jnp.asarray(rng.normal(size=(*shape, count, WIDTH)), dtype) for count in counts)


def relative(a, b, of_zero=0.0) -> float:
    """The relative L2 distance of `a` from `b`. If `b` is exactly zero, the distance is relative to `of_zero`."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or of_zero))


def dense_gradients(logits, q, k, v, d_out, seen):
    expected, pull = jax.vjp(lambda q, k, v: dense(logits, q, k, v, seen), q, k, v)
    return (expected, *pull(d_out.astype(jnp.float32)))


def our_gradients(name, logits, q, k, v, d_out, mask):
    backend, options = BACKENDS[name]
    out, lse = backend.forward(logits, q, k, v, mask, **options)
    delta = jnp.einsum('BTNH,BTNH->BNT', out, d_out, preferred_element_type=jnp.float32)
    return (out, *backend.backward(logits, q, k, v, mask, lse, delta, d_out, **options))


DENSE, OURS = jax.jit(dense_gradients, static_argnums=0), jax.jit(our_gradients, static_argnums=(0, 1))


@pytest.mark.parametrize('heads', [(2, 2), (6, 2)], ids=['plain', 'grouped'])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('name', BACKENDS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_values_and_gradients_of_random_forests_are_the_dense_ones(name, dtype, heads, seed):
    check(name, PLAIN, dtype, heads, seed)


@pytest.mark.parametrize('logits', [PLAIN, CAPPED], ids=['plain', 'capped'])
@pytest.mark.parametrize('name', BACKENDS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_windows_and_capped_logits_are_the_dense_ones(name, logits, seed):
    check(name, logits, jnp.float32, (4, 2), seed, window=True)


def check(name, logits, dtype, heads, seed, *, window=False):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, 3 * BLOCK, 2, window=window)
    inputs = inputs_of(rng, mask.extent_BT.shape, *heads, dtype)
    ours, expected = OURS(name, logits, *inputs, mask), DENSE(logits, *inputs, seen_by(mask))
    # Where each query sees only itself, queries and keys have no gradient. Ours is then rounding of what it sums.
    of_zero = 0.1 * float(jnp.linalg.norm(expected[0].astype(jnp.float32).ravel()))
    for array, dense_array in zip(ours, expected, strict=True):
        assert array.dtype == dtype and relative(array, dense_array, of_zero) <= TOLERANCE[dtype]


@pytest.mark.parametrize('window', [False, True])
def test_the_interface_pads_and_differentiates(window):
    rng, length = np.random.default_rng(0), BLOCK + 72
    mask = jax.tree.map(lambda x: x[:, :length], random_mask(rng, 3 * BLOCK, 2, window=window))
    inputs = inputs_of(rng, (2, length), 4, 2, jnp.float32)

    @jax.jit
    def ours(q, k, v, d_out, mask):
        out, pull = jax.vjp(lambda q, k, v: tree_attention(q, k, v, mask, CAPPED), q, k, v)
        return (out, *pull(d_out))

    for actual, expected in zip(ours(*inputs, mask), DENSE(CAPPED, *inputs, seen_by(mask)), strict=True):
        assert relative(actual, expected) <= 1e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 32, 64]))
def test_a_block_is_live_iff_something_attends_in_it(seed, block):
    mask = random_mask(np.random.default_rng(seed), 256, 1)
    np.testing.assert_array_equal(live_blocks(mask, block), used_blocks(mask, block))


def used_blocks(mask: Mask, block: int) -> np.ndarray:
    count = mask.extent_BT.shape[1] // block
    return seen_by(mask).reshape(-1, count, block, count, block).any((2, 4))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 32, 64]))
def test_no_block_in_a_window_is_dead(seed, block):
    mask = random_mask(np.random.default_rng(seed), 256, 1, window=True)
    live = np.asarray(live_blocks(mask, block))
    assert (live >= used_blocks(mask, block)).all() and (live <= np.asarray(live_blocks(Mask(mask[0]), block))).all()


@pytest.mark.parametrize('window', [1, 30, 64, 65, 200])
def test_in_a_plain_sequence_just_the_blocks_in_the_window_are_live(window):
    position = jnp.arange(256)[None]
    mask = Mask(256 - position, position, position - (window - 1))
    np.testing.assert_array_equal(live_blocks(mask, 32), used_blocks(mask, 32))


TWO_TREES = np.concatenate([np.arange(BLOCK, 0, -1), np.arange(2 * BLOCK, 0, -1)])[None]
STEPS = np.arange(3 * BLOCK)[None]
DEAD = {'tree': Mask(TWO_TREES), 'window': Mask(3 * BLOCK - STEPS, STEPS, STEPS - 4)}


@pytest.mark.parametrize('rule', DEAD)
@pytest.mark.parametrize('name', BACKENDS)
def test_dead_blocks_are_not_read(name, rule):
    """The content of a dead block has no effect, even if it is NaN."""
    (backend, options), mask = BACKENDS[name], jax.tree.map(jnp.asarray, DEAD[rule])
    q, k, v, _ = inputs_of(np.random.default_rng(1), mask.extent_BT.shape, 2, 1, jnp.float32)
    k, v = (x.at[:, :BLOCK].set(jnp.nan) for x in (k, v))
    out, _ = jax.jit(functools.partial(backend.forward, PLAIN, **options))(q, k, v, mask)
    after = BLOCK if rule == 'tree' else 2 * BLOCK
    assert jnp.isfinite(out[:, after:]).all()
