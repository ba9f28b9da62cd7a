"""Tree attention in plain XLA: a block of queries and a block of keys at a time, live blocks only; on any backend.

Memory is linear in the length of a row: logits exist for one block, under a running softmax (arXiv 2205.14135), and are
computed again for the gradient.

Dimension key: B rows, T tokens (a multiple of BLOCK), N query heads, K key-value heads, H head width. Of one block: X
rows of queries, all those that share a key-value head; S keys. Blocks of all rows lie in one line, row after row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhi_jax.models.tree_blocks import BLOCK, NOTHING, ends, listed, live_blocks

PRODUCTS = 5  # matrix products of the gradient


class _Queries(NamedTuple):
    """What one block of queries attends to."""

    first: jax.Array  # its first token's index in the row
    row: jax.Array  # number of the row's first block
    live_J: jax.Array  # the row's blocks of keys that it sees, `count` of them
    count: jax.Array


def forward(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, extent_BT: jax.Array) -> tuple:
    """Context [B, T, N, H] in q's dtype, and the log of each query's softmax denominator [B, N, T] in float32."""
    batch, kv_heads = q_BTNH.shape[0], k_BTKH.shape[2]
    keys, values, end = _of_keys(k_BTKH), _of_keys(v_BTKH), ends(extent_BT).reshape(-1, BLOCK)

    def one(_, inputs):
        queries, q_KXH = inputs

        def add(step, carry):
            top_KX, sum_KX, out_KXH = carry
            j = queries.live_J[step]
            logits_KXS = _logits(q_KXH, queries.first, j, keys[queries.row + j], end[queries.row + j])
            new_top_KX = jnp.maximum(top_KX, logits_KXS.max(-1))
            weights_KXS = jnp.exp(logits_KXS - new_top_KX[..., None])
            shrink_KX = jnp.exp(top_KX - new_top_KX)
            more_KXH = _dot('KXS,KSH->KXH', weights_KXS.astype(v_BTKH.dtype), values[queries.row + j])
            return new_top_KX, sum_KX * shrink_KX + weights_KXS.sum(-1), out_KXH * shrink_KX[..., None] + more_KXH

        nothing = jnp.full(q_KXH.shape[:2], NOTHING), jnp.zeros(q_KXH.shape[:2]), jnp.zeros(q_KXH.shape)
        top_KX, sum_KX, out_KXH = jax.lax.fori_loop(0, queries.count, add, nothing)
        return None, ((out_KXH / sum_KX[..., None]).astype(q_KXH.dtype), top_KX + jnp.log(sum_KX))

    _, (out, lse) = jax.lax.scan(one, None, (_queries(extent_BT), _of_queries(q_BTNH, kv_heads)))
    return _to_heads(out, batch), _to_heads(lse[..., None], batch)[..., 0].swapaxes(1, 2)


def backward(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    extent_BT: jax.Array,
    lse_BNT: jax.Array,
    delta_BNT: jax.Array,
    d_out_BTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v; `delta` is the sum over H of the context times its gradient."""
    batch, kv_heads, scale = q_BTNH.shape[0], k_BTKH.shape[2], q_BTNH.shape[-1] ** -0.5
    keys, values, end = _of_keys(k_BTKH), _of_keys(v_BTKH), ends(extent_BT).reshape(-1, BLOCK)

    def one(carry, inputs):
        queries, q_KXH, d_out_KXH, lse_KX1, delta_KX1 = inputs

        def add(step, carry):
            dq_KXH, dk, dv = carry
            j = queries.live_J[step]
            k_KSH, v_KSH = keys[queries.row + j], values[queries.row + j]
            logits_KXS = _logits(q_KXH, queries.first, j, k_KSH, end[queries.row + j])
            weights_KXS = jnp.exp(logits_KXS - lse_KX1)
            d_weights_KXS = _dot('KXH,KSH->KXS', d_out_KXH, v_KSH)
            d_logits_KXS = (weights_KXS * (d_weights_KXS - delta_KX1) * scale).astype(q_KXH.dtype)
            dq_KXH += _dot('KXS,KSH->KXH', d_logits_KXS, k_KSH)
            dk = dk.at[queries.row + j].add(_dot('KXS,KXH->KSH', d_logits_KXS, q_KXH))
            dv = dv.at[queries.row + j].add(_dot('KXS,KXH->KSH', weights_KXS.astype(q_KXH.dtype), d_out_KXH))
            return dq_KXH, dk, dv

        dq_KXH, dk, dv = jax.lax.fori_loop(0, queries.count, add, (jnp.zeros(q_KXH.shape), *carry))
        return (dk, dv), dq_KXH.astype(q_KXH.dtype)

    by_query = (q_BTNH, d_out_BTNH, *(x.swapaxes(1, 2)[..., None] for x in (lse_BNT, delta_BNT)))
    inputs = (_queries(extent_BT), *(_of_queries(x, kv_heads) for x in by_query))
    (dk, dv), dq = jax.lax.scan(one, (jnp.zeros(keys.shape), jnp.zeros(values.shape)), inputs)
    return _to_heads(dq, batch), _from_keys(dk, k_BTKH), _from_keys(dv, v_BTKH)


def _logits(q_KXH: jax.Array, first: jax.Array, j: jax.Array, k_KSH: jax.Array, end_S: jax.Array) -> jax.Array:
    """Scaled logits of one block of queries and block j of keys, float32 [K, X, S]."""
    logits_KXS = _dot('KXH,KSH->KXS', q_KXH, k_KSH) * q_KXH.shape[-1] ** -0.5
    query_Q, key_S = first + jnp.arange(BLOCK), j * BLOCK + jnp.arange(BLOCK)
    seen_QS = (key_S <= query_Q[:, None]) & (query_Q[:, None] < end_S)
    seen_XS = jnp.tile(seen_QS, (q_KXH.shape[1] // BLOCK, 1))
    return jnp.where(seen_XS, logits_KXS, NOTHING)


def _dot(dims: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(dims, a, b, preferred_element_type=jnp.float32)


def _queries(extent_BT: jax.Array) -> _Queries:
    live_BIJ = live_blocks(extent_BT, BLOCK)
    batch, count, _ = live_BIJ.shape
    indices, counts = listed(live_BIJ)
    number = jnp.arange(batch * count)
    place = number % count
    return _Queries(place * BLOCK, number - place, indices.reshape(-1, count), counts.reshape(-1))


def _of_queries(x_BTNH: jax.Array, kv_heads: int) -> jax.Array:
    """[blocks, K, X, H]: the queries that share a key-value head are the rows of one matrix."""
    batch, length, heads, width = x_BTNH.shape
    x = x_BTNH.reshape(batch * length // BLOCK, BLOCK, kv_heads, heads // kv_heads, width)
    return x.transpose(0, 2, 3, 1, 4).reshape(-1, kv_heads, heads // kv_heads * BLOCK, width)


def _to_heads(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_of_queries`, [B, T, N, H]."""
    blocks, kv_heads, rows, width = x.shape
    x = x.reshape(blocks, kv_heads, rows // BLOCK, BLOCK, width).transpose(0, 3, 1, 2, 4)
    return x.reshape(batch, blocks // batch * BLOCK, -1, width)


def _of_keys(x_BTKH: jax.Array) -> jax.Array:
    """[blocks, K, S, H]."""
    return x_BTKH.reshape(-1, BLOCK, *x_BTKH.shape[2:]).swapaxes(1, 2)


def _from_keys(x: jax.Array, like_BTKH: jax.Array) -> jax.Array:
    return x.swapaxes(1, 2).reshape(like_BTKH.shape).astype(like_BTKH.dtype)
