"""Attention over interaction trees: one rule for causal rows, shared prefixes, candidates and packing.

Dimension key: B rows, T queries, S keys, K key-value heads, G query heads per key-value head, H head width.
"""

import jax
import jax.numpy as jnp


def tree_mask(extent_BS: jax.Array) -> jax.Array:
    """Which token attends to which, [B, T, S] bool.

    Token i attends to token j iff `0 <= i - j < extent[j]`, where `extent[j]` counts the tokens from j to the end of
    its node's subtree. A causal row has `extent[j] = T - j`; padding has extent 1.

    >>> tree_mask(jnp.array([[3, 1, 1]]))[0].astype(int).tolist()   # a root and two children
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    index = jnp.arange(extent_BS.shape[-1])
    distance = index[:, None] - index[None, :]
    return (distance >= 0) & (distance < extent_BS[:, None, :])


def tree_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Grouped-query attention under a mask, [B, T, N, H]; logits and softmax in float32."""
    batch, length, heads, width = q_BTNH.shape
    groups = heads // k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, -1, groups, width)
    logits = jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    logits = jnp.where(mask_BTS[:, None, None], logits * width**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum('BKGTS,BSKH->BTKGH', weights, v_BSKH)
    return out_BTKGH.reshape(batch, length, heads, width)
