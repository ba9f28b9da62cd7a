"""Tree attention in plain XLA for any backend, computed for one query block and one key block at a time.

For each query block, the computation visits only live key blocks. A key block is live if some query in the query block
attends to some of its keys.

Memory use is linear in the row length: thanks to a running softmax (arXiv 2205.14135), only the logits of one query
block and one key block exist at a time, and they are recomputed for the gradient.

Dimension key: B rows, T tokens (a multiple of BLOCK), N query heads, K key-value heads, H head width. One block
has X queries (from all heads that share a key-value head) and S keys. The blocks of all rows lie along one axis, row by
row.

Queries lie along the last axis, so a CPU can reduce over keys with vector instructions. The axes of each matrix product
are in the order that is fastest in XLA.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhi_jax.models.tree_blocks import BLOCK, NOTHING, Logits, Mask, ends, listed, live_blocks

PRODUCTS = 5  # matrix products in the gradient


class _Queries(NamedTuple):
    """One query block and its live key blocks."""

    first: jax.Array  # index of the query block's first token in the row
    row: jax.Array  # index of the row's first block among the blocks of all rows
    live_J: jax.Array  # indices, within the row, of the live key blocks; the first `count` are valid
    count: jax.Array  # number of live key blocks
    lowest_S: jax.Array | None  # the lowest position that each query attends to; None without a sliding window


def forward(logits: Logits, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask) -> tuple:
    """Return the context [B, T, N, H] in q's dtype, and the log of each softmax denominator [B, N, T] in float32."""
    batch, kv_heads = q_BTNH.shape[0], k_BTKH.shape[2]
    keys, values, seen = _of_keys(k_BTKH, 'KHS'), _of_keys(v_BTKH, 'KSH'), _seen_by(mask)

    def one(_, inputs):
        queries, q_KHX = inputs

        def add(step, carry):
            top_K1X, sum_K1X, out_KHX = carry
            j = queries.live_J[step]
            logits_KSX = logits.of(_dot('KHS,KHX->KSX', keys[queries.row + j], q_KHX))
            logits_KSX = jnp.where(seen(queries, j, q_KHX.shape[-1]), logits_KSX, NOTHING)
            new_top_K1X = jnp.maximum(top_K1X, logits_KSX.max(1, keepdims=True))
            weights_KSX = jnp.exp(logits_KSX - new_top_K1X)
            shrink_K1X = jnp.exp(top_K1X - new_top_K1X)
            more_KHX = _dot('KSH,KSX->KHX', values[queries.row + j], weights_KSX.astype(v_BTKH.dtype))
            sum_K1X = sum_K1X * shrink_K1X + weights_KSX.sum(1, keepdims=True)
            return new_top_K1X, sum_K1X, out_KHX * shrink_K1X + more_KHX

        per_query = (kv_heads, 1, q_KHX.shape[-1])
        nothing = jnp.full(per_query, NOTHING), jnp.zeros(per_query), jnp.zeros(q_KHX.shape)
        top_K1X, sum_K1X, out_KHX = jax.lax.fori_loop(0, queries.count, add, nothing)
        return None, ((out_KHX / sum_K1X).astype(q_KHX.dtype), top_K1X + jnp.log(sum_K1X))

    _, (out, lse) = jax.lax.scan(one, None, (_queries(mask), _of_queries(q_BTNH, kv_heads)))
    return _to_heads(out, batch), _to_heads(lse, batch)[..., 0].swapaxes(1, 2)


def backward(
    logits: Logits,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    lse_BNT: jax.Array,
    delta_BNT: jax.Array,
    d_out_BTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of q, k and v.

    `lse` is the log of each softmax denominator. `delta` is the sum over H of the context times its gradient.
    """
    batch, kv_heads = q_BTNH.shape[0], k_BTKH.shape[2]
    keys, values, seen = _of_keys(k_BTKH, 'KHS'), _of_keys(v_BTKH, 'KHS'), _seen_by(mask)
    keys_by_token = _of_keys(k_BTKH, 'KSH')

    def one(carry, inputs):
        queries, q_KHX, d_out_KHX, lse_K1X, delta_K1X = inputs

        def add(step, carry):
            dq_KHX, dk, dv = carry
            j = queries.live_J[step]
            k_KHS, v_KHS = keys[queries.row + j], values[queries.row + j]
            logits_KSX = logits.of(_dot('KHS,KHX->KSX', k_KHS, q_KHX))
            masked_KSX = jnp.where(seen(queries, j, q_KHX.shape[-1]), logits_KSX, NOTHING)
            weights_KSX = jnp.exp(masked_KSX - lse_K1X)
            d_weights_KSX = _dot('KHS,KHX->KSX', v_KHS, d_out_KHX)
            d_product_KSX = weights_KSX * (d_weights_KSX - delta_K1X) * logits.slope(logits_KSX)
            d_product_KSX = d_product_KSX.astype(q_KHX.dtype)
            dq_KHX += _dot('KSH,KSX->KHX', keys_by_token[queries.row + j], d_product_KSX)
            dk = dk.at[queries.row + j].add(_dot('KHX,KSX->KHS', q_KHX, d_product_KSX))
            dv = dv.at[queries.row + j].add(_dot('KHX,KSX->KHS', d_out_KHX, weights_KSX.astype(q_KHX.dtype)))
            return dq_KHX, dk, dv

        dq_KHX, dk, dv = jax.lax.fori_loop(0, queries.count, add, (jnp.zeros(q_KHX.shape), *carry))
        return (dk, dv), dq_KHX.astype(q_KHX.dtype)

    by_query = (q_BTNH, d_out_BTNH, *(x.swapaxes(1, 2)[..., None] for x in (lse_BNT, delta_BNT)))
    inputs = (_queries(mask), *(_of_queries(x, kv_heads) for x in by_query))
    (dk, dv), dq = jax.lax.scan(one, (jnp.zeros(keys.shape), jnp.zeros(values.shape)), inputs)
    return _to_heads(dq, batch), _from_keys(dk, k_BTKH), _from_keys(dv, v_BTKH)


def _seen_by(mask: Mask) -> Callable[[_Queries, jax.Array, int], jax.Array]:
    """Return a function that computes the mask of a query block and a key block, [S, X].

    The mask is true where a query attends to a key. The function takes the query block, the key block's index within
    the row, and X.
    """
    end, position = (x if x is None else x.reshape(-1, BLOCK) for x in (ends(mask.extent_BT), mask.position_BT))

    def seen(queries: _Queries, j: jax.Array, count: int) -> jax.Array:
        query_X = queries.first + jnp.tile(jnp.arange(BLOCK), count // BLOCK)
        key_S1 = j * BLOCK + jnp.arange(BLOCK)[:, None]
        seen_SX = (key_S1 <= query_X) & (query_X < end[queries.row + j][:, None])
        if queries.lowest_S is not None:
            seen_SX &= position[queries.row + j][:, None] >= jnp.tile(queries.lowest_S, count // BLOCK)
        return seen_SX

    return seen


def _dot(dims: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(dims, a, b, preferred_element_type=jnp.float32)


def _queries(mask: Mask) -> _Queries:
    live_BIJ = live_blocks(mask, BLOCK)
    batch, count, _ = live_BIJ.shape
    indices, counts = listed(live_BIJ)
    number = jnp.arange(batch * count)
    block = number % count
    lowest = None if mask.lowest_BT is None else mask.lowest_BT.reshape(-1, BLOCK)
    return _Queries(block * BLOCK, number - block, indices.reshape(-1, count), counts.reshape(-1), lowest)


def _of_queries(x_BTNH: jax.Array, kv_heads: int) -> jax.Array:
    """Rearrange [B, T, N, H] to [blocks, K, H, X]; queries that share a key-value head become columns of one matrix."""
    batch, length, heads, width = x_BTNH.shape
    x = x_BTNH.reshape(batch * length // BLOCK, BLOCK, kv_heads, heads // kv_heads, width)
    return x.transpose(0, 2, 4, 3, 1).reshape(-1, kv_heads, width, heads // kv_heads * BLOCK)


def _to_heads(x: jax.Array, batch: int) -> jax.Array:
    """Rearrange [blocks, K, H, X] back to [B, T, N, H], inverting `_of_queries`."""
    blocks, kv_heads, width, queries = x.shape
    x = x.reshape(blocks, kv_heads, width, queries // BLOCK, BLOCK).transpose(0, 4, 1, 3, 2)
    return x.reshape(batch, blocks // batch * BLOCK, -1, width)


def _of_keys(x_BTKH: jax.Array, order: str) -> jax.Array:
    """Rearrange [B, T, K, H] to [blocks, ...], where each block has the axes K, S and H in the given order."""
    return jnp.einsum(f'ZSKH->Z{order}', x_BTKH.reshape(-1, BLOCK, *x_BTKH.shape[2:]))


def _from_keys(x_KHS: jax.Array, like_BTKH: jax.Array) -> jax.Array:
    return x_KHS.transpose(0, 3, 1, 2).reshape(like_BTKH.shape).astype(like_BTKH.dtype)
