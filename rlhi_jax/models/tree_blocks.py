"""Finds the blocks of a row's attention that need to be computed.

Dimension key: B rows, T tokens, I query blocks, J key blocks.
"""

import jax
import jax.numpy as jnp

NOTHING = -0.7 * float(jnp.finfo(jnp.float32).max)  # logit of a masked key; finite, so that differences are finite too
BLOCK = 128  # tokens per block; rows are padded to a multiple of this. The logits of two blocks fit in a CPU's cache


def ends(extent_BT: jax.Array) -> jax.Array:
    """Return the index just past each token's subtree, `end` [B, T]; tokens j to `end[j] - 1` attend to token j."""
    return jnp.arange(extent_BT.shape[1], dtype=jnp.int32) + extent_BT


def live_blocks(extent_BT: jax.Array, block: int) -> jax.Array:
    """Return whether any query in block i attends to any key in block j, [B, I, J] bool; a block has `block` tokens.

    One number per key block decides this exactly: for i >= j, some query attends to some key iff the largest end of the
    keys' subtrees is greater than the first query's index.

    >>> live_blocks(jnp.array([[4, 1, 2, 1, 1, 1]]), 2)[0].astype(int).tolist()   # a tree of 4 tokens, padding
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    batch, length = extent_BT.shape
    end_BJ = ends(extent_BT).reshape(batch, length // block, block).max(-1)
    first = jnp.arange(length // block) * block
    return (first[None, :] <= first[:, None]) & (end_BJ[:, None, :] > first[:, None])


def listed(live_BIJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return, for each block i, the indices j of its live blocks, [B, I, J], and their number, [B, I], as int32.

    The indices are in increasing order, and the last one is repeated to fill J entries. A kernel that fetches ahead
    then finds that block already in memory.

    >>> indices, counts = listed(jnp.array([[[True, False, True]]]))
    >>> indices.tolist(), counts.tolist()
    ([[[0, 2, 2]]], [[2]])
    """
    order = jnp.argsort(~live_BIJ, axis=-1, stable=True)
    count = live_BIJ.sum(-1)
    step = jnp.minimum(jnp.arange(live_BIJ.shape[-1]), count[..., None] - 1)
    return jnp.take_along_axis(order, step, axis=-1).astype(jnp.int32), count.astype(jnp.int32)
