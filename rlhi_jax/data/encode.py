"""Tokenises interaction trees and cuts them into pieces that fit in a row."""

import bisect
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

from rlhi_jax.data.rows import Capacities, Size, TokenNode, TokenPair, TokenTree, size
from rlhi_jax.data.tree import NONE, Interaction, Reply
from rlhi_jax.tokenizers.template import ChatTemplate, Context


class Piece(NamedTuple):
    """A part of a tree that goes into one row.

    Attributes:
      start: index of the message at which the context of the pairs starts. A hindsight pair has two prompts,
        which end in two versions of the same request, with and without the follow-up. Both versions have the same
        parent. If the context starts at one version for one prompt, it starts at the other version for the other one.
      pairs: indices of the pairs.
    """

    start: int
    pairs: tuple[int, ...]


class TreeEncoder:
    """Turns pieces of an interaction into token trees, and caches the tokens of each message.

    Attributes:
      escapes: number of times that the template's markup was found in text and escaped.
    """

    def __init__(self, tree: Interaction, template: ChatTemplate):
        self.tree, self._template = tree, template
        self._context = Context(tree.system, tree.persona)
        # Pieces of the same tree may start at different turns, but they share messages.
        self._encoded: dict[tuple[int, Hashable], TokenNode] = {}
        self._more: dict[int, int] = {}
        self.escapes = 0

    def encode(self, piece: Piece, first_pair_id: int = 0) -> TokenTree:
        """Return the token tree of a piece; its pairs are numbered from `first_pair_id`.

        Raises:
          UserError: the chat template rejects the turns.
        """
        pairs, replies = [self.tree.pairs[i] for i in piece.pairs], _replies(self.tree, piece)
        children = self._children(replies)

        nodes: list[TokenNode] = []
        node_of: dict[int, int] = {}
        # A reward token follows each reply. Later turns do not see it, so it is a branch of its own.
        reward_token = self._template.reward_token
        rewarded = set() if reward_token is None else {reply.last for reply in replies}
        reward_node: dict[int, int] = {}

        # (message, parent node, roles of the messages above)
        stack: list[tuple[int, int, tuple[str, ...]]] = [(root, -1, ()) for root in self._roots(piece.start, children)]
        while stack:
            message, parent, roles = stack.pop()
            roles = self._template.shortened((*roles, self.tree.messages[message].role))
            last = node_of[message] = len(nodes)
            nodes.append(self._message(message, roles)._replace(parent=parent))
            if message in rewarded:
                reward_node[message] = len(nodes)
                nodes.append(TokenNode(last, (reward_token,)))
            below = children.get(message, [])
            if below and self.tree.messages[below[0]].role == 'assistant':
                prompt = self._template.generation_prompt(roles, self._context)
                if prompt:
                    nodes.append(TokenNode(last, prompt))
                    last = len(nodes) - 1
            stack += [(child, last, roles) for child in reversed(below)]
        index = {reply: number for number, reply in enumerate(replies)} | {None: NONE}
        table = [
            TokenPair(*(index[side] for side in pair.sides), pair.weight, pair.margin, first_pair_id + i, pair.tied)
            for i, pair in enumerate(pairs)
        ]
        scored = [[node_of[m] for m in self.tree.reply(*reply)] for reply in replies]
        for reply, of_reply in zip(replies, scored, strict=True):
            of_reply += [reward_node[reply.last]] if rewarded else []
        return TokenTree(nodes, scored, table)

    def _children(self, replies: Iterable[Reply]) -> dict[int, list[int]]:
        """Return the messages on the paths to the given replies, grouped by parent, in the order of the tree."""
        kept = {message for reply in replies for message in self.tree.path(reply.last)}
        children: dict[int, list[int]] = {}
        for message in sorted(kept):
            children.setdefault(self.tree.messages[message].parent, []).append(message)
        return children

    def _roots(self, start: int, children: Mapping[int, list[int]]) -> list[int]:
        return children[self.tree.messages[start].parent][::-1]

    def size(self, piece: Piece) -> Size:
        """Return a piece's size: the larger of its sizes with and without the persona.

        If the template has a default system text, the rendering without a persona can be longer.
        """
        with_persona = size(self.encode(piece))
        roots = self._roots(piece.start, self._children(_replies(self.tree, piece)))
        return with_persona._replace(tokens=with_persona.tokens + sum(map(self._more_without_persona, roots)))

    def _more_without_persona(self, start: int) -> int:
        """Return the number of extra tokens in a piece's first turn if the persona is left out; 0 if there are none."""
        if start not in self._more:
            root = self.tree.messages[start]
            lengths = [
                len(self._template.encode((root.role,), root.content, context).ids)
                for context in (self._context, self._context._replace(persona=''))
            ]
            self._more[start] = max(0, lengths[1] - lengths[0])
        return self._more[start]

    def _message(self, message: int, roles: tuple[str, ...]) -> TokenNode:
        key = (message, self._template.added(roles, self._context))
        if key not in self._encoded:
            encoded = self._template.encode(roles, self.tree.messages[message].content, self._context)
            self.escapes += encoded.escapes
            self._encoded[key] = TokenNode(-1, encoded.ids, encoded.scored)
        return self._encoded[key]


def _replies(tree: Interaction, piece: Piece) -> list[Reply]:
    """Return the replies in a piece's pairs, each once, in the order in which the row lists them."""
    return list(dict.fromkeys(side for i in piece.pairs for side in tree.pairs[i].sides if side))


def reply_keys(tree: Interaction, piece: Piece) -> list[tuple[int, int, int]]:
    """Return a key for each reply of a piece, in the same order as the replies in the row.

    A key (start, prompt, last) identifies a reply and its context. It consists of the message indices at which the
    context starts, the prompt ends and the reply ends.
    """
    return [(piece.start, *reply) for reply in _replies(tree, piece)]


def cut(encoder: TreeEncoder, capacities: Capacities, dropped: Counter) -> Iterator[Piece]:
    """Cut a tree into pieces that each fit in a row; `dropped` counts the pairs that are too long.

    - Pairs are taken in order, and consecutive pairs share a piece as long as they fit.
    - A pair whose conversation fits in a row keeps its whole conversation.
    - A pair whose conversation is too long loses its oldest turns, one whole exchange at a time. The latest user turn,
      the persona and the replies are never shortened; if they do not fit, the pair is dropped.
    - Shortened pairs share a piece only if each pair keeps at least half of the exchanges that it would keep in a piece
      of its own. Their common context is then computed only once.
    """
    piece: Piece | None = None
    starts: list[int] = []  # the messages at which the context of every pair in the piece may start
    for i in range(len(encoder.tree.pairs)):
        alone = start_piece(encoder, i, capacities)
        if alone is None:
            dropped['longer_than_a_row'] += 1
            continue
        allowed = _starts(encoder.tree, alone)
        if piece is not None:
            shared = [start for start in starts if start in allowed]
            longer = _widest(encoder, (*piece.pairs, i), shared, capacities)
            if longer is not None:
                piece, starts = longer, shared
                continue
            yield piece
        piece, starts = alone, allowed
    if piece is not None:
        yield piece


def start_piece(encoder: TreeEncoder, pair: int, capacities: Capacities) -> Piece | None:
    """Return a piece with one pair and as much context as fits; None if even the latest user turn is too long."""
    return _widest(encoder, (pair,), _user_turns(encoder.tree, pair), capacities)


def _starts(tree: Interaction, alone: Piece) -> list[int]:
    """Return the user turns at which a pair's context may start.

    If the whole conversation fits, the context starts at the first turn. Otherwise, the context may start at any turn
    that keeps at least half of the exchanges that fit.

    Args:
      tree: the tree that contains the pair.
      alone: the piece that contains only this pair, with as much context as fits.
    """
    (pair,) = alone.pairs
    turns = [turn for turn in _user_turns(tree, pair) if turn >= alone.start]
    return turns[: 1 + len(turns) // 2] if tree.messages[alone.start].parent >= 0 else turns[:1]


def _user_turns(tree: Interaction, pair: int) -> list[int]:
    """Return the user turns before a pair's replies, oldest first."""
    return [turn for turn in tree.path(tree.pairs[pair].prompt) if tree.messages[turn].role == 'user']


def _widest(encoder: TreeEncoder, pairs: tuple[int, ...], starts: list[int], capacities: Capacities) -> Piece | None:
    """Return the piece with the most context that fits in a row, or None if no piece fits.

    The context starts at one of the turns `starts`, which are ordered from the oldest turn to the latest.
    """
    pieces = [Piece(start, pairs) for start in starts]

    def fits(piece: Piece) -> bool:
        return encoder.size(piece).fits(capacities)

    if pieces and fits(pieces[0]):
        return pieces[0]
    first = bisect.bisect_left(pieces, True, key=fits)  # a later start leaves out whole exchanges, so sizes decrease
    return pieces[first] if first < len(pieces) else None
