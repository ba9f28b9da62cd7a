"""Attention over interaction trees: one rule for causal rows, shared prefixes, candidates and packing.

Dimension key: B rows, T tokens, Q queries of one block, S keys up to that block's end, C tokens that a cache holds, K
key-value heads, G query heads per key-value head, N = K G query heads, H head width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # queries at a time: their logits stay in a CPU's cache


def tree_mask(extent_BS: jax.Array, first: int, queries: int) -> jax.Array:
    """Which of `queries` tokens from index `first` on attend to which of the first S tokens, [B, Q, S] bool.

    Token i attends to token j iff `0 <= i - j < extent[j]`, where `extent[j]` counts the tokens from j to the end of
    its node's subtree. A causal row has `extent[j] = T - j`; padding has extent 1.

    >>> tree_mask(jnp.array([[3, 1, 1]]), 0, 3)[0].astype(int).tolist()   # a root and two children
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    distance_QS = first + jnp.arange(queries)[:, None] - jnp.arange(extent_BS.shape[-1])[None, :]
    return (distance_QS >= 0) & (distance_QS < extent_BS[:, None, :])


def tree_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, extent_BT: jax.Array) -> jax.Array:
    """Grouped-query attention by the tree rule, [B, T, N, H]; logits and softmax in float32.

    A block of queries sees only the keys up to its own end, and its logits are computed again for the gradient instead
    of being kept.
    """
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k_BTKH.shape[2]
    q_BKGTH = q_BTNH.reshape(batch, length, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)
    k_BKTH, v_BKTH = k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 1, 3)
    blocks = []
    for first in range(0, length, BLOCK):
        end = min(first + BLOCK, length)
        attend = jax.checkpoint(functools.partial(_attend, first=first))
        blocks.append(attend(q_BKGTH[..., first:end, :], k_BKTH[:, :, :end], v_BKTH[:, :, :end], extent_BT[:, :end]))
    out_BKGTH = jnp.concatenate(blocks, axis=3)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _attend(q_BKGQH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, extent_BS: jax.Array, *, first: int) -> jax.Array:
    batch, kv_heads, groups, queries, width = q_BKGQH.shape
    # One matrix product a key-value head: all its query heads' rows at once.
    q_BKXH = q_BKGQH.reshape(batch, kv_heads, groups * queries, width)
    logits = jnp.einsum('BKXH,BKSH->BKXS', q_BKXH, k_BKSH, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, kv_heads, groups, queries, -1) * width**-0.5
    mask_BQS = tree_mask(extent_BS, first, queries)
    logits = jnp.where(mask_BQS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BKSH.dtype)
    weights_BKXS = weights.reshape(batch, kv_heads, groups * queries, -1)
    return jnp.einsum('BKXS,BKSH->BKXH', weights_BKXS, v_BKSH).reshape(q_BKGQH.shape)


class KVCache(NamedTuple):
    """Keys and values of C earlier tokens of B sequences; keys lie with their tokens last, as the logits read them."""

    k_BKHC: jax.Array
    v_BKCH: jax.Array


def cached_attention(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, cache: KVCache, filled_B: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Attention of one new token a sequence (T = 1) to the first `filled_B` tokens of its cache and to itself.

    The new token is written to the cache first, at its last place where it is full: only what reads the result of that
    write lets XLA do it in place.

    Returns:
      Context, [B, 1, N, H]; logits and softmax in float32, as in `tree_attention`. And the cache with the token.
    """
    batch, _, heads, width = q_BTNH.shape
    kv_heads, capacity = cache.v_BKCH.shape[1:3]
    every, place_B = jnp.arange(batch), jnp.minimum(filled_B, capacity - 1)
    cache = KVCache(
        cache.k_BKHC.at[every, :, :, place_B].set(k_BTKH[:, 0]),
        cache.v_BKCH.at[every, :, place_B].set(v_BTKH[:, 0]),
    )
    q_BKGH = q_BTNH.reshape(batch, kv_heads, -1, width)
    logits_BKGC = jnp.einsum('BKGH,BKHC->BKGC', q_BKGH, cache.k_BKHC, preferred_element_type=jnp.float32)
    there_BC = jnp.arange(capacity) <= place_B[:, None]
    logits_BKGC = jnp.where(there_BC[:, None, None], logits_BKGC * width**-0.5, jnp.finfo(jnp.float32).min)
    weights_BKGC = jax.nn.softmax(logits_BKGC, axis=-1).astype(v_BTKH.dtype)
    out_BKGH = jnp.einsum('BKGC,BKCH->BKGH', weights_BKGC, cache.v_BKCH)
    return out_BKGH.reshape(batch, 1, heads, width), cache
