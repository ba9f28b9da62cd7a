"""Attention over interaction trees: one mask rule covers causal rows, shared prefixes, sibling replies and packing.

Token i attends to token j iff `0 <= i - j < extent[j]`, where `extent[j]` counts the tokens from j to the end of its
node's subtree. A causal row has `extent[j] = T - j`; padding has extent 1. In layers with a sliding window of w
positions, `position[i] - position[j] < w` must also hold, where position counts tokens along the path.

Dimension key: B rows, T tokens, C tokens in a cache, K key-value heads, G query heads per key-value head,
N = K * G query heads, H head width.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhi_jax.models import attention_tpu, attention_xla
from rlhi_jax.models.tree_blocks import BLOCK, Logits, Mask
from rlhi_jax.parallel.sharding import resolve


def tree_attention(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, logits: Logits) -> jax.Array:
    """Return the output ("context") [B, T, N, H] of grouped-query attention, with the mask rule of this module.

    Logits and softmax are computed in float32, by Pallas kernels on a TPU and by blockwise XLA elsewhere. Both skip
    blocks in which no query attends to any key, and recompute logits for the gradient. On a mesh, each device computes
    its own rows and heads.
    """
    length = q_BTNH.shape[1]
    padding = -length % BLOCK

    def padded(x: jax.Array, value: int = 0) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2), constant_values=value)

    mask = Mask(padded(mask.extent_BT, 1), *jax.tree.map(padded, mask[1:]))
    return _on_devices(q_BTNH.shape[0], logits)(padded(q_BTNH), padded(k_BTKH), padded(v_BTKH), mask)[:, :length]


def _on_devices(batch: int, logits: Logits):
    """Return the attention function; if a mesh is in context, each device computes only its own rows and heads."""
    mesh, attend = jax.sharding.get_abstract_mesh(), functools.partial(_attend, logits)
    if mesh.empty or mesh.size == 1:
        return attend
    rows, heads = resolve(('batch', 'heads'), 'attention')
    if batch == 1:  # a sampler reads one prompt at a time, on all devices
        rows = None
    per_head, per_row = jax.P(rows, None, heads, None), jax.P(rows, None)
    return jax.shard_map(attend, in_specs=(per_head,) * 3 + (per_row,), out_specs=per_head, check_vma=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(logits: Logits, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask) -> jax.Array:
    return _attend_forward(logits, q_BTNH, k_BTKH, v_BTKH, mask)[0]


def _attend_forward(logits: Logits, *inputs: Any) -> tuple[jax.Array, tuple]:
    tpu, default = (functools.partial(module.forward, logits) for module in (attention_tpu, attention_xla))
    out, lse = jax.lax.platform_dependent(*inputs, tpu=tpu, default=default)
    out, lse = checkpoint_name(out, 'context'), checkpoint_name(lse, 'lse')
    return out, (*inputs, out, lse)


def _attend_backward(logits: Logits, residuals: tuple, d_out_BTNH: jax.Array) -> tuple:
    tpu, default = (functools.partial(module.backward, logits) for module in (attention_tpu, attention_xla))
    *inputs, out_BTNH, lse_BNT = residuals
    delta_BTN = jnp.einsum('BTNH,BTNH->BTN', out_BTNH, d_out_BTNH, preferred_element_type=jnp.float32)
    gradients = jax.lax.platform_dependent(
        *inputs, lse_BNT, delta_BTN.swapaxes(1, 2), d_out_BTNH, tpu=tpu, default=default
    )
    return (*gradients, None)


_attend.defvjp(_attend_forward, _attend_backward)


class KVCache(NamedTuple):
    """Keys and values of C earlier tokens in each of B sequences.

    In the keys, the token axis is last, because the matrix product for the logits reads the keys in this order.
    """

    k_BKHC: jax.Array
    v_BKCH: jax.Array


def cached_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    cache: KVCache,
    filled_B: jax.Array,
    lowest_B: jax.Array | None,
    logits: Logits,
) -> tuple[jax.Array, KVCache]:
    """Attend from one new token per sequence (T = 1) to the first `filled_B` tokens in its cache and to itself.

    With a sliding window, `lowest_B` is the index of the first cached token that the new token attends to. If
    `lowest_B` is None, the new token attends to all `filled_B` tokens.

    The new token is first written to the cache (at the last position if the cache is full), and attention then reads
    the updated cache. XLA can update the cache in place only if the write comes first.

    Returns:
      The context [B, 1, N, H], and the cache including the new token. As in `tree_attention`, logits and softmax are
      computed in float32.
    """
    batch, _, heads, width = q_BTNH.shape
    kv_heads, capacity = cache.v_BKCH.shape[1:3]
    every, index_B = jnp.arange(batch), jnp.minimum(filled_B, capacity - 1)
    cache = KVCache(
        cache.k_BKHC.at[every, :, :, index_B].set(k_BTKH[:, 0]),
        cache.v_BKCH.at[every, :, index_B].set(v_BTKH[:, 0]),
    )
    q_BKGH = q_BTNH.reshape(batch, kv_heads, -1, width)
    logits_BKGC = jnp.einsum('BKGH,BKHC->BKGC', q_BKGH, cache.k_BKHC, preferred_element_type=jnp.float32)
    seen_BC = jnp.arange(capacity) <= index_B[:, None]
    if lowest_B is not None:
        seen_BC &= jnp.arange(capacity) >= lowest_B[:, None]
    logits_BKGC = jnp.where(seen_BC[:, None, None], logits.of(logits_BKGC), jnp.finfo(jnp.float32).min)
    weights_BKGC = jax.nn.softmax(logits_BKGC, axis=-1).astype(v_BTKH.dtype)
    out_BKGH = jnp.einsum('BKGC,BKCH->BKGH', weights_BKGC, cache.v_BKCH)
    return out_BKGH.reshape(batch, 1, heads, width), cache
