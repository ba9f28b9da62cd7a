"""Defines the attention mask and the attention logits, and finds the blocks that need to be computed.

Dimension key: B rows, T tokens, I query blocks, J key blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NOTHING = -0.7 * float(jnp.finfo(jnp.float32).max)  # logit of a masked key; finite, so that differences are finite too
BLOCK = 128  # tokens per block; rows are padded to a multiple of this. The logits of two blocks fit in a CPU's cache


class Mask(NamedTuple):
    """Which tokens each token attends to: i attends to j iff `0 <= i - j < extent[j]` and `position[j] >= lowest[i]`.

    The second condition is a sliding window over each token's own path. Without a window, `position_BT` and `lowest_BT`
    are None.
    """

    extent_BT: jax.Array
    position_BT: jax.Array | None = None
    lowest_BT: jax.Array | None = None


class Logits(NamedTuple):
    """How the product of a query and a key becomes a logit: `scale * product`, capped to `cap * tanh(logit / cap)`."""

    scale: float
    cap: float | None = None

    def of(self, product: jax.Array) -> jax.Array:
        return product * self.scale if self.cap is None else self.cap * jnp.tanh(product * (self.scale / self.cap))

    def slope(self, logit: jax.Array) -> jax.Array | float:
        """Return the derivative of a logit, before masking, with respect to the product of its query and key."""
        return self.scale if self.cap is None else self.scale * (1 - jnp.square(logit / self.cap))


def ends(extent_BT: jax.Array) -> jax.Array:
    """Return the index just past each token's subtree, `end` [B, T]; tokens j to `end[j] - 1` attend to token j."""
    return jnp.arange(extent_BT.shape[1], dtype=jnp.int32) + extent_BT


def live_blocks(mask: Mask, block: int) -> jax.Array:
    """Return whether queries in block i may attend to keys in block j, [B, I, J] bool; a block has `block` tokens.

    Without a window, one number per key block decides this exactly: for i >= j, some query attends to some key iff the
    largest end of the keys' subtrees is greater than the first query's index. With a window, the largest position of
    the keys must also reach the lowest position that any query sees. This test is not exact: a block may count as live
    although no query and key in it satisfy both conditions.

    >>> live_blocks(Mask(jnp.array([[4, 1, 2, 1, 1, 1]])), 2)[0].astype(int).tolist()   # a tree of 4 tokens, padding
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    batch, length = mask.extent_BT.shape

    def blocks(x_BT: jax.Array) -> jax.Array:
        return x_BT.reshape(batch, length // block, block)

    first = jnp.arange(length // block) * block
    live = (first[None, :] <= first[:, None]) & (blocks(ends(mask.extent_BT)).max(-1)[:, None, :] > first[:, None])
    if mask.lowest_BT is None:
        return live
    return live & (blocks(mask.position_BT).max(-1)[:, None, :] >= blocks(mask.lowest_BT).min(-1)[:, :, None])


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
