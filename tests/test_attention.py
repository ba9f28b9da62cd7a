"""Tree attention, in XLA and as TPU kernels, against the rule written out densely."""

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
from rlhi_jax.models.tree_blocks import BLOCK, live_blocks

WIDTH = 16
BACKENDS = {'xla': (attention_xla, {}), 'tpu': (attention_tpu, {'interpret': True})}
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def mask_of(extent_BT):
    """The mask of the rule, computed token by token."""
    distance = np.arange(extent_BT.shape[1])[:, None] - np.arange(extent_BT.shape[1])
    return (distance >= 0) & (distance < extent_BT[:, None, :])


def dense(q, k, v, extent):
    """Plain softmax attention in float32 under the whole mask."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum('BQNH,BSNH->BNQS', q, k, precision='highest') * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask_of(extent)[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum('BNQS,BSNH->BQNH', weights, v, precision='highest')


def random_extents(rng, tokens, rows) -> np.ndarray:
    """Rows of random forests with padding at the end."""
    capacities = Capacities(tokens, 4 * tokens, tokens)
    extents = []
    for _ in range(rows):
        parts = []
        while True:
            more = [lay_out(tree) for tree in forest_that_fits(rng, capacities)]
            if sum(len(part.tokens_T) for part in parts + more) > tokens:
                break
            parts += more
            if rng.random() < 0.1:
                break
        extents.append(pack(parts, capacities).extent_T)
    return np.stack(extents)


def inputs_of(rng, extent, heads, kv_heads, dtype):
    shape = (*extent.shape, heads, WIDTH)
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=(*shape[:2], count, WIDTH)), dtype) for count in (heads, kv_heads, kv_heads, heads)
    )
    return q, k, v, jnp.asarray(extent), d_out


def relative(a, b) -> float:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def dense_gradients(q, k, v, extent, d_out):
    expected, pull = jax.vjp(lambda q, k, v: dense(q, k, v, extent), q, k, v)
    return (expected, *pull(d_out.astype(jnp.float32)))


def our_gradients(name, q, k, v, extent, d_out):
    backend, options = BACKENDS[name]
    out, lse = backend.forward(q, k, v, extent, **options)
    delta = jnp.einsum('BTNH,BTNH->BNT', out, d_out, preferred_element_type=jnp.float32)
    return (out, *backend.backward(q, k, v, extent, lse, delta, d_out, **options))


DENSE, OURS = jax.jit(dense_gradients), jax.jit(our_gradients, static_argnums=0)


@pytest.mark.parametrize('heads', [(2, 2), (6, 2)], ids=['plain', 'grouped'])
@pytest.mark.parametrize('dtype', TOLERANCE, ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('name', BACKENDS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_values_and_gradients_of_random_forests_are_the_dense_ones(name, dtype, heads, seed):
    rng = np.random.default_rng(seed)
    inputs = inputs_of(rng, random_extents(rng, 3 * BLOCK, 2), *heads, dtype)
    for actual, expected in zip(OURS(name, *inputs), DENSE(*inputs), strict=True):
        assert actual.dtype == dtype and relative(actual, expected) <= TOLERANCE[dtype]


def test_the_interface_pads_and_differentiates():
    rng = np.random.default_rng(0)
    q, k, v, extent, d_out = inputs_of(rng, random_extents(rng, 3 * BLOCK, 2)[:, : BLOCK + 72], 4, 2, jnp.float32)

    @jax.jit
    def ours(q, k, v, extent, d_out):
        out, pull = jax.vjp(lambda q, k, v: tree_attention(q, k, v, extent), q, k, v)
        return (out, *pull(d_out))

    for actual, expected in zip(ours(q, k, v, extent, d_out), DENSE(q, k, v, extent, d_out), strict=True):
        assert relative(actual, expected) <= 1e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 32, 64]))
def test_a_block_is_live_iff_something_attends_in_it(seed, block):
    extent = random_extents(np.random.default_rng(seed), 256, 1)
    count = 256 // block
    expected = mask_of(extent).reshape(1, count, block, count, block).any((2, 4))
    np.testing.assert_array_equal(live_blocks(jnp.asarray(extent), block), expected)


def test_dead_blocks_are_not_read():
    """The content of a dead block has no effect, even if it is NaN."""
    extent = np.concatenate([np.arange(BLOCK, 0, -1), np.arange(2 * BLOCK, 0, -1)])[None]
    for backend, options in BACKENDS.values():
        q, k, v, extent, _ = inputs_of(np.random.default_rng(1), extent, 2, 1, jnp.float32)
        out, _ = backend.forward(q, k.at[:, :BLOCK].set(jnp.nan), v.at[:, :BLOCK].set(jnp.nan), extent, **options)
        assert jnp.isfinite(out[:, BLOCK:]).all()
