"""Defines the attention mask and the attention logits, and finds the blocks of logits that must be computed.

Dimension key: B rows, T tokens, I query blocks, J key blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NOTHING = -0.7 * float(jnp.finfo(jnp.float32).max)  # logit of a masked key; finite, so that differences are finite too
BLOCK = 128  # tokens per block; rows are padded to a multiple of this. The logits of two blocks fit in a CPU's cache


class Mask(NamedTuple):
    """Which tokens each token attends to: i attends to j iff `0 <= i - j < extent[j]` and `position[j] >= lowest[i]`.

    The second condition is a sliding window over each token's own path.

    Attributes:
      extent_BT: number of tokens from each token to the end of its node's subtree, including the token itself.
      position_BT: number of tokens before each token on its path; None without a window.
      lowest_BT: the lowest position that each token attends to; None without a window.
    """

    extent_BT: jax.Array
    position_BT: jax.Array | None = None
    lowest_BT: jax.Array | None = None


class Logits(NamedTuple):
    """The function that maps the dot product of a query and a key to an attention logit.

    The logit is `scale * product`. If `cap` is set, the logit is then capped to `cap * tanh(logit / cap)`.
    """

    scale: float
    cap: float | None = None

    def of(self, product: jax.Array) -> jax.Array:
        return product * self.scale if self.cap is None else self.cap * jnp.tanh(product * (self.scale / self.cap))

    def slope(self, logit: jax.Array) -> jax.Array | float:
        """Return the derivative of an unmasked logit with respect to the product of its query and key."""
        return self.scale if self.cap is None else self.scale * (1 - jnp.square(logit / self.cap))


def ends(extent_BT: jax.Array) -> jax.Array:
    """Return the index just past each token's subtree, `end` [B, T]; tokens j to `end[j] - 1` attend to token j."""
    return jnp.arange(extent_BT.shape[1], dtype=jnp.int32) + extent_BT


def live_blocks(mask: Mask, block: int) -> jax.Array:
    """Return whether any query in block i may attend to any key in block j, [B, I, J] bool.

    A block has `block` tokens. Without a window, one number per key block decides this exactly: for i >= j, some query
    attends to some key iff the largest end of the keys' subtrees is greater than the first query's index. With a
    window, the largest position of the keys must also reach the lowest position that any of the queries attends to.
    This test is not exact: the result may be true although no query attends to any of the keys.

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

    The indices are in increasing order, and the last one is repeated to fill J entries. A kernel that prefetches the
    next block then fetches nothing new for the repeated entries.

    >>> indices, counts = listed(jnp.array([[[True, False, True]]]))
    >>> indices.tolist(), counts.tolist()
    ([[[0, 2, 2]]], [[2]])
    """
    order = jnp.argsort(~live_BIJ, axis=-1, stable=True)
    count = live_BIJ.sum(-1)
    step = jnp.minimum(jnp.arange(live_BIJ.shape[-1]), count[..., None] - 1)
    return jnp.take_along_axis(order, step, axis=-1).astype(jnp.int32), count.astype(jnp.int32)
