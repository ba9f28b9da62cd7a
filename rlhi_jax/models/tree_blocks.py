"""Which blocks of a row's attention have anything to compute.

Dimension key: B rows, T tokens, I blocks of queries, J blocks of keys.
"""

import jax
import jax.numpy as jnp

NOTHING = -0.7 * float(jnp.finfo(jnp.float32).max)  # the logit of a masked key; finite, so that differences are too
BLOCK = 128  # tokens; rows are padded to a multiple. The logits of two blocks fit a CPU's cache


def ends(extent_BT: jax.Array) -> jax.Array:
    """The index after the last token of each token's subtree, [B, T]: tokens from j up to there attend to token j."""
    return jnp.arange(extent_BT.shape[1], dtype=jnp.int32) + extent_BT


def live_blocks(extent_BT: jax.Array, block: int) -> jax.Array:
    """Whether any query of block i attends to any key of block j, [B, I, J] bool; a block is `block` tokens.

    One number per block of keys decides this exactly: for i >= j, some query sees some key iff the key whose subtree
    reaches furthest reaches past the first query.

    >>> live_blocks(jnp.array([[4, 1, 2, 1, 1, 1]]), 2)[0].astype(int).tolist()   # a tree of 4 tokens, padding
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    batch, length = extent_BT.shape
    end_BJ = ends(extent_BT).reshape(batch, length // block, block).max(-1)
    first = jnp.arange(length // block) * block
    return (first[None, :] <= first[:, None]) & (end_BJ[:, None, :] > first[:, None])


def listed(live_BIJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The live blocks in each row of blocks: their indices in order [B, I, J], and their count [B, I]; int32.

    After the live ones, the last index is repeated, so that a kernel which fetches ahead finds the block in memory.

    >>> indices, counts = listed(jnp.array([[[True, False, True]]]))
    >>> indices.tolist(), counts.tolist()
    ([[[0, 2, 2]]], [[2]])
    """
    order = jnp.argsort(~live_BIJ, axis=-1, stable=True)
    count = live_BIJ.sum(-1)
    step = jnp.minimum(jnp.arange(live_BIJ.shape[-1]), count[..., None] - 1)
    return jnp.take_along_axis(order, step, axis=-1).astype(jnp.int32), count.astype(jnp.int32)
