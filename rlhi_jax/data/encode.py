"""Interaction trees from text to tokens, cut into pieces that fit a row."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rlhi_jax.data.rows import Capacities, Size, TokenNode, TokenTree, size
from rlhi_jax.data.tree import Interaction
from rlhi_jax.tokenizers.template import ChatTemplate, Context


class Piece(NamedTuple):
    """Part of a tree that fits one row: some of its pairs, and the turn that their context starts at."""

    start: int
    pairs: tuple[int, ...]


class TreeEncoder:
    """Turns pieces of one interaction into token trees, tokenising each message once.

    Attributes:
      escapes: number of times that user text spelled the template's own markup.
    """

    def __init__(self, tree: Interaction, template: ChatTemplate):
        self.tree, self._template = tree, template
        self._context = Context(tree.system, tree.persona)
        self._encoded: dict[tuple[int, int], TokenNode] = {}
        self.escapes = 0

    def encode(self, piece: Piece, first_pair_id: int = 0) -> TokenTree:
        """The token tree of a piece; pair ids count from `first_pair_id`.

        Raises:
          UserError: the chat template refuses the turns.
        """
        pairs = [self.tree.pairs[i] for i in piece.pairs]
        kept = {message for pair in pairs for leaf in (pair.chosen, pair.rejected) for message in self.tree.path(leaf)}
        children: dict[int, list[int]] = {}
        for message in sorted(kept):
            children.setdefault(self.tree.messages[message].parent, []).append(message)

        nodes: list[TokenNode] = []
        node_of: dict[int, int] = {}

        stack: list[tuple[int, int, tuple[str, ...]]] = [(piece.start, -1, ())]  # message, parent node, roles above
        while stack:
            message, parent, roles = stack.pop()
            roles = (*roles, self.tree.messages[message].role)
            last = node_of[message] = len(nodes)
            nodes.append(self._message(message, roles)._replace(parent=parent))
            below = children.get(message, [])
            if below and self.tree.messages[below[0]].role == 'assistant':
                prompt = self._template.generation_prompt(roles, self._context)
                if prompt:
                    nodes.append(TokenNode(last, prompt))
                    last = len(nodes) - 1
            stack += [(child, last, roles) for child in reversed(below)]
        replies: dict[tuple[int, int], int] = {}
        table = []
        for i, pair in enumerate(pairs):
            chosen, rejected = (
                replies.setdefault((pair.prompt, last), len(replies)) for last in (pair.chosen, pair.rejected)
            )
            table.append((chosen, rejected, pair.weight, first_pair_id + i))
        scored = [[node_of[m] for m in self.tree.reply(prompt, last)] for prompt, last in replies]
        return TokenTree(nodes, scored, table)

    def size(self, piece: Piece) -> Size:
        """What a piece takes of a row, with or without its persona, whichever is more.

        A template's default system text can make the rendering without a persona the longer one.
        """
        own = size(self.encode(piece))
        root = self.tree.messages[piece.start]
        lengths = [
            len(self._template.encode((root.role,), root.content, context).ids)
            for context in (self._context, self._context._replace(persona=''))
        ]
        return own._replace(tokens=own.tokens + max(0, lengths[1] - lengths[0]))

    def _message(self, message: int, roles: tuple[str, ...]) -> TokenNode:
        key = (message, len(roles))
        if key not in self._encoded:
            encoded = self._template.encode(roles, self.tree.messages[message].content, self._context)
            self.escapes += encoded.escapes
            self._encoded[key] = TokenNode(-1, encoded.ids, encoded.scored)
        return self._encoded[key]


def reply_keys(tree: Interaction, piece: Piece) -> list[tuple[int, int, int]]:
    """What identifies each reply of a piece within its tree, in the order of its reply table: (start, prompt, last)."""
    keys = dict.fromkeys(
        (piece.start, pair.prompt, last)
        for pair in (tree.pairs[i] for i in piece.pairs)
        for last in (pair.chosen, pair.rejected)
    )
    return list(keys)


def cut(encoder: TreeEncoder, capacities: Capacities, dropped: Counter) -> Iterator[Piece]:
    """Cut a tree into pieces that fit a row; what cannot fit is counted in `dropped` by reason.

    Pairs are taken in order and stay together while they fit. A pair whose context is too long loses its oldest turns,
    whole exchanges at a time; the latest user turn, the persona and the replies always survive, or the pair is dropped.
    """
    piece: Piece | None = None
    for i in range(len(encoder.tree.pairs)):
        if piece is not None:
            longer = Piece(piece.start, (*piece.pairs, i))
            if _contains(encoder.tree, longer) and _fits(encoder, longer, capacities):
                piece = longer
                continue
            yield piece
        piece = start_piece(encoder, i, capacities)
        if piece is None:
            dropped['longer_than_a_row'] += 1
    if piece is not None:
        yield piece


def start_piece(encoder: TreeEncoder, pair: int, capacities: Capacities) -> Piece | None:
    """The pair with as much of its context as fits, or None if not even its latest user turn does."""
    tree = encoder.tree
    turns = (m for m in tree.path(tree.pairs[pair].prompt) if tree.messages[m].role == 'user')
    pieces = (Piece(start, (pair,)) for start in turns)
    return next((piece for piece in pieces if _fits(encoder, piece, capacities)), None)


def _contains(tree: Interaction, piece: Piece) -> bool:
    """Whether the newest pair's prompt lies below the turn that the piece starts at."""
    return piece.start in tree.path(tree.pairs[piece.pairs[-1]].prompt)


def _fits(encoder: TreeEncoder, piece: Piece, capacities: Capacities) -> bool:
    return encoder.size(piece).fits(capacities)
