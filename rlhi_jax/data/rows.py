"""The row contract: token trees written depth-first into rows of fixed capacities.

Dimension key of a row: T tokens, S scored slots, R replies (2 P), P pairs.

    tokens, position, extent, back [T]   see `lay_out`
    slot_token, slot_reply [S]           each scored token of each reply: its index in the row, and its reply
    reply_last [R]                       index in the row of the reply's last token (where a reward is read)
    pair_chosen, pair_rejected [P]       replies; pair_weight [P]; pair_id [P], -1 where there is no pair

Token i attends to token j iff `0 <= i - j < extent[j]`; the hidden state at `i - back[i]` predicts token i. All three
are relative, so trees concatenate into a row as they are. Padding is tokens of extent 1 and slots of reply R.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Capacities:
    """How much one row holds."""

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
    """The capacities that `config.rows` asks for."""
    return Capacities(**config.rows.to_dict())


class TokenNode(NamedTuple):
    """A stretch of tokens on every path through it; `scored` of its leading ones count where it belongs to a reply."""

    parent: int
    ids: tuple[int, ...]
    scored: int = 0


class TokenTree(NamedTuple):
    """A tree in tokens, ready to lay out.

    `nodes` are in depth-first order, none empty. `replies` lists the scored nodes of each reply, first to last; `pairs`
    are (chosen reply, rejected reply, weight, pair id).
    """

    nodes: Sequence[TokenNode]
    replies: Sequence[Sequence[int]]
    pairs: Sequence[tuple[int, int, float, int]]


class Size(NamedTuple):
    """What a tree takes of a row's capacities."""

    tokens: int
    scored: int
    pairs: int

    def fits(self, capacities: Capacities) -> bool:
        return all(used <= getattr(capacities, name) for name, used in self._asdict().items())


def size(tree: TokenTree) -> Size:
    scored = sum(tree.nodes[node].scored for reply in tree.replies for node in reply)
    return Size(sum(len(node.ids) for node in tree.nodes), scored, len(tree.pairs))


def lay_out(tree: TokenTree) -> Row:
    """Write one tree depth-first.

    For a root [a b] with children [c] and [d e]:

    >>> row = lay_out(TokenTree([TokenNode(-1, (1, 2)), TokenNode(0, (3,), 1), TokenNode(0, (4, 5), 2)],
    ...                         [[1], [2]], [(1, 0, 1.0, 7)]))
    >>> [row[name].tolist() for name in ('tokens', 'position', 'extent', 'back')]
    [[1, 2, 3, 4, 5], [0, 1, 2, 2, 3], [5, 4, 1, 2, 1], [0, 1, 1, 2, 1]]
    >>> row['slot_token'].tolist(), row['slot_reply'].tolist(), row['reply_last'].tolist()
    ([2, 3, 4], [0, 1, 1], [2, 4])
    """
    lengths = np.array([len(node.ids) for node in tree.nodes])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    below = lengths.copy()  # tokens of the node's whole subtree
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
    chosen, rejected, weight, pair_id = zip(*tree.pairs, strict=True)
    columns = dict(
        tokens=np.concatenate([node.ids for node in tree.nodes]),
        position=np.concatenate(position),
        extent=np.concatenate(extent),
        back=np.concatenate(back),
        slot_token=[token for token, _ in slots],
        slot_reply=[reply for _, reply in slots],
        reply_last=[starts[nodes[-1]] + lengths[nodes[-1]] - 1 for nodes in tree.replies],
        pair_chosen=chosen,
        pair_rejected=rejected,
        pair_id=pair_id,
    )
    row = {name: np.asarray(column, np.int32) for name, column in columns.items()}
    return row | {'pair_weight': np.asarray(weight, np.float32)}


def empty_row(capacities: Capacities) -> Row:
    """A row of padding only."""
    sizes = _sizes(capacities)
    padding = {'extent': 1, 'slot_reply': capacities.replies, 'pair_id': -1}
    row = {name: np.full(count, padding.get(name, 0), np.int32) for name, count in sizes.items()}
    return row | {'pair_weight': np.zeros(capacities.pairs, np.float32)}


def pack(parts: Sequence[Row], capacities: Capacities) -> Row:
    """Concatenate laid-out trees and pad to the row's capacities.

    Raises:
      ValueError: they do not fit.
    """
    row = empty_row(capacities)
    token, reply = 0, 0
    filled = dict.fromkeys(row, 0)
    offsets = dict(
        slot_token='token', reply_last='token', slot_reply='reply', pair_chosen='reply', pair_rejected='reply'
    )
    for part in parts:
        for name, column in part.items():
            start, end = filled[name], filled[name] + len(column)
            if end > len(row[name]):
                raise ValueError(f'{name}: {end} do not fit into {len(row[name])}')
            row[name][start:end] = column + {'token': token, 'reply': reply}.get(offsets.get(name), 0)
            filled[name] = end
        token += len(part['tokens'])
        reply += len(part['reply_last'])
    return row


def _sizes(capacities: Capacities) -> dict[str, int]:
    tokens = dict.fromkeys(('tokens', 'position', 'extent', 'back'), capacities.tokens)
    slots = dict.fromkeys(('slot_token', 'slot_reply'), capacities.scored)
    pairs = dict.fromkeys(('pair_chosen', 'pair_rejected', 'pair_id', 'pair_weight'), capacities.pairs)
    return {**tokens, **slots, 'reply_last': capacities.replies, **pairs}
