"""The row format: token trees are written depth-first into rows of fixed capacity.

Dimension key: B rows in a batch, T tokens, S slots for scored tokens, R replies (2 P), P pairs.

Token i attends to token j iff `0 <= i - j < extent[j]`. The hidden state at `i - back[i]` predicts token i. The fields
position, extent and back are relative, so they stay the same when trees are concatenated into a row. The extent of
padding tokens is 1. Padding slots have the reply index R, one past the last reply.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError

if TYPE_CHECKING:
    import jax  # the loader runs without JAX

    Array = np.ndarray | jax.Array


class Row(NamedTuple):
    """One row, or one tree before packing. Arrays are int32 unless stated otherwise.

    Attributes:
      tokens_T: token ids.
      position_T: number of tokens before this one on its path from the root; the RoPE position.
      extent_T: number of tokens from this one, inclusive, to the end of its node's subtree; 1 for padding.
      back_T: distance in tokens to the predecessor on the same path: 1 inside a node, 1 or more for the first token of
        a branch, and 0 for the first token of a root, which is never scored.
      slot_token_S: index of the slot's token within the row; each reply has one slot per scored token.
      slot_reply_S: index of the reply that the slot belongs to; R for padding.
      reply_last_R: index of the reply's last token within the row; the reward is read at this token.
      pair_chosen_P: index of the pair's chosen reply; -1 if the pair has none.
      pair_rejected_P: index of the pair's rejected reply; -1 if the pair has none.
      pair_id_P: number of the pair in the row plan; -1 for padding.
      pair_weight_P: weight of the pair's loss, float32.
      pair_margin_P: the amount by which the chosen reply's reward should exceed the rejected reply's, float32.
      pair_tied_P: whether neither reply of the pair is better, bool.
      reference_logp_R: log-probability of each reply under the reference policy, in nats, float32; None if the
        objective uses no reference.
    """

    tokens_T: np.ndarray
    position_T: np.ndarray
    extent_T: np.ndarray
    back_T: np.ndarray
    slot_token_S: np.ndarray
    slot_reply_S: np.ndarray
    reply_last_R: np.ndarray
    pair_chosen_P: np.ndarray
    pair_rejected_P: np.ndarray
    pair_id_P: np.ndarray
    pair_weight_P: np.ndarray
    pair_margin_P: np.ndarray
    pair_tied_P: np.ndarray
    reference_logp_R: np.ndarray | None = None


class Batch(NamedTuple):
    """Rows stacked along a leading axis, with the same fields as `Row`.

    The fields are NumPy arrays at first, and JAX arrays once they are on the mesh.
    """

    tokens_BT: 'Array'
    position_BT: 'Array'
    extent_BT: 'Array'
    back_BT: 'Array'
    slot_token_BS: 'Array'
    slot_reply_BS: 'Array'
    reply_last_BR: 'Array'
    pair_chosen_BP: 'Array'
    pair_rejected_BP: 'Array'
    pair_id_BP: 'Array'
    pair_weight_BP: 'Array'
    pair_margin_BP: 'Array'
    pair_tied_BP: 'Array'
    reference_logp_BR: 'Array | None' = None


def stack(rows: Sequence[Row]) -> Batch:
    """Stack rows with equal capacities into a batch; either all rows or none must have reference log-probabilities."""
    columns = zip(*rows, strict=True)
    return Batch(*(None if column[0] is None else np.stack(column) for column in columns))


@dataclasses.dataclass(frozen=True)
class Capacities:
    """The numbers of tokens, scored tokens and pairs that fit in one row."""

    tokens: int
    scored: int
    pairs: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f'config.rows.{name} is {value}: it must be at least 1')

    @property
    def replies(self) -> int:
        return 2 * self.pairs


def capacities(config: ConfigDict) -> Capacities:
    """Return the capacities set in `config.rows`."""
    return Capacities(**config.rows.to_dict())


class TokenNode(NamedTuple):
    """A node of a token tree: a run of tokens that all paths through the node share.

    If the node is part of a reply, its first `scored` tokens are scored.
    """

    parent: int
    ids: tuple[int, ...]
    scored: int = 0


class TokenPair(NamedTuple):
    """A pair in a token tree: indices into the tree's replies (-1 for a reply that the pair lacks), and as in `Row`."""

    chosen: int
    rejected: int
    weight: float
    margin: float
    id: int
    tied: bool = False


class TokenTree(NamedTuple):
    """A tokenised tree, ready to be laid out.

    Attributes:
      nodes: the nodes in depth-first order; no node is empty.
      replies: for each reply, the indices of its scored nodes, first to last, and of the node of its reward token if
        there is one. The reward is read at the last token of the last node.
      pairs: the pairs.
    """

    nodes: Sequence[TokenNode]
    replies: Sequence[Sequence[int]]
    pairs: Sequence[TokenPair]


class Size(NamedTuple):
    """The numbers of tokens, scored tokens and pairs in a token tree."""

    tokens: int
    scored: int
    pairs: int

    def fits(self, capacities: Capacities) -> bool:
        return all(used <= getattr(capacities, name) for name, used in self._asdict().items())


def size(tree: TokenTree) -> Size:
    scored = sum(tree.nodes[node].scored for reply in tree.replies for node in reply)
    return Size(sum(len(node.ids) for node in tree.nodes), scored, len(tree.pairs))


def lay_out(tree: TokenTree) -> Row:
    """Lay out one tree depth-first, without padding.

    For a root [a b] with children [c] and [d e]:

    >>> row = lay_out(TokenTree([TokenNode(-1, (1, 2)), TokenNode(0, (3,), 1), TokenNode(0, (4, 5), 2)],
    ...                         [[1], [2]], [TokenPair(1, 0, 1.0, 0.0, 7)]))
    >>> [column.tolist() for column in (row.tokens_T, row.position_T, row.extent_T, row.back_T)]
    [[1, 2, 3, 4, 5], [0, 1, 2, 2, 3], [5, 4, 1, 2, 1], [0, 1, 1, 2, 1]]
    >>> row.slot_token_S.tolist(), row.slot_reply_S.tolist(), row.reply_last_R.tolist()
    ([2, 3, 4], [0, 1, 1], [2, 4])
    """
    lengths = np.array([len(node.ids) for node in tree.nodes])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    below = lengths.copy()  # tokens in the node's whole subtree
    for i in range(len(tree.nodes) - 1, 0, -1):
        if tree.nodes[i].parent >= 0:
            below[tree.nodes[i].parent] += below[i]
    depth = np.zeros_like(lengths)
    position, extent, back = [], [], []
    for i, node in enumerate(tree.nodes):
        steps = np.arange(lengths[i])
        jump = 0
        if node.parent >= 0:
            depth[i] = depth[node.parent] + lengths[node.parent]
            jump = starts[i] - (starts[node.parent] + lengths[node.parent] - 1)
        position.append(depth[i] + steps)
        extent.append(below[i] - steps)
        back.append(np.where(steps == 0, jump, 1))
    slots = [
        (starts[node] + step, reply)
        for reply, nodes in enumerate(tree.replies)
        for node in nodes
        for step in range(tree.nodes[node].scored)
    ]
    chosen, rejected, weight, margin, pair_id, tied = zip(*tree.pairs, strict=True)
    columns = dict(
        tokens_T=np.concatenate([node.ids for node in tree.nodes]),
        position_T=np.concatenate(position),
        extent_T=np.concatenate(extent),
        back_T=np.concatenate(back),
        slot_token_S=[token for token, _ in slots],
        slot_reply_S=[reply for _, reply in slots],
        reply_last_R=[starts[nodes[-1]] + lengths[nodes[-1]] - 1 for nodes in tree.replies],
        pair_chosen_P=chosen,
        pair_rejected_P=rejected,
        pair_id_P=pair_id,
    )
    integers = {name: np.asarray(column, np.int32) for name, column in columns.items()}
    floats = dict(pair_weight_P=np.asarray(weight, np.float32), pair_margin_P=np.asarray(margin, np.float32))
    return Row(**integers, **floats, pair_tied_P=np.asarray(tied, bool))


def empty_row(capacities: Capacities) -> Row:
    """Return a row that is all padding."""

    def full(count: int, value: int = 0) -> np.ndarray:
        return np.full(count, value, np.int32)

    return Row(
        tokens_T=full(capacities.tokens),
        position_T=full(capacities.tokens),
        extent_T=full(capacities.tokens, 1),
        back_T=full(capacities.tokens),
        slot_token_S=full(capacities.scored),
        slot_reply_S=full(capacities.scored, capacities.replies),
        reply_last_R=full(capacities.replies),
        pair_chosen_P=full(capacities.pairs),
        pair_rejected_P=full(capacities.pairs),
        pair_id_P=full(capacities.pairs, -1),
        pair_weight_P=np.zeros(capacities.pairs, np.float32),
        pair_margin_P=np.zeros(capacities.pairs, np.float32),
        pair_tied_P=np.zeros(capacities.pairs, bool),
    )


def pack(parts: Sequence[Row], capacities: Capacities) -> Row:
    """Concatenate laid-out trees and pad the result to the row's capacities.

    Raises:
      ValueError: the trees do not fit.
    """
    moved: list[Row] = []
    token = reply = 0
    for part in parts:
        moved.append(_moved(part, token, reply))
        token += len(part.tokens_T)
        reply += len(part.reply_last_R)
    columns = {}
    for name, padding in empty_row(capacities)._asdict().items():
        if padding is None:
            continue
        values = [getattr(part, name) for part in moved]
        used = sum(map(len, values))
        if used > len(padding):
            raise ValueError(f'{name}: {used} values exceed the capacity of {len(padding)}')
        columns[name] = np.concatenate([*values, padding[used:]])
    return Row(**columns)


def _moved(part: Row, token: int, reply: int) -> Row:
    """Return a tree with its indices shifted by the `token` tokens and `reply` replies that precede it in the row."""
    return part._replace(
        slot_token_S=part.slot_token_S + token,
        slot_reply_S=part.slot_reply_S + reply,
        reply_last_R=part.reply_last_R + token,
        pair_chosen_P=np.where(part.pair_chosen_P < 0, part.pair_chosen_P, part.pair_chosen_P + reply),
        pair_rejected_P=np.where(part.pair_rejected_P < 0, part.pair_rejected_P, part.pair_rejected_P + reply),
    )
