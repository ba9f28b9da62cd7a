"""The row plan: which pieces of which trees share a row.

The plan is made before training, so the loader's entire state is the number of the next step.
"""

import bisect
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhi_jax.data.encode import Piece, TreeEncoder, cut
from rlhi_jax.data.rows import Capacities, Size, lay_out
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, read_json, write_bytes, write_json
from rlhi_jax.tokenizers.template import ChatTemplate

_REMEDY = 'make the row plan again with `python -m data_pipelines.rows`'


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """An assignment of pieces of trees to rows.

    Attributes:
      rows: for each row, a list of (tree index, piece, number of the piece's first pair).
      pair_names: the ids of all pairs that were kept; a pair's number is its index in this list.
      capacities: the row capacities that the plan was made for.
      identity: digests of the data and of the template (including its tokenizer), and the capacities.
      counts: totals for the manifest, such as the number of pairs kept and the number dropped for each reason.
    """

    rows: list[list[tuple[int, Piece, int]]]
    pair_names: list[str]
    capacities: Capacities
    identity: dict[str, Any]
    counts: dict[str, int]

    @property
    def digest(self) -> str:
        return digest(self.identity, self.rows)

    def pair_ids(self, row: int) -> list[int]:
        """Return the numbers of the pairs in a row, in the row's order."""
        return [first + i for _, piece, first in self.rows[row] for i in range(len(piece.pairs))]

    def names_in(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of the pairs in some rows; row -1 is padding."""
        return [self.pair_names[i] for row in rows if row >= 0 for i in self.pair_ids(row)]


def plan_identity(trees: Shards | View, template: ChatTemplate, capacities: Capacities) -> dict[str, Any]:
    """Return everything that a row plan depends on: digests of the data and of the template, and the capacities."""
    return dict(data=trees.digest, template=template.digest, capacities=dataclasses.asdict(capacities))


def nothing_fits(option: str, capacities: Capacities) -> str:
    """Return the message for an option that names pairs of which none fits in a row."""
    return (
        f'{option}: no pair fits in a row of {capacities.tokens} tokens with {capacities.scored} scored tokens: '
        'raise config.rows.tokens and config.rows.scored'
    )


def make_plan(
    trees: Shards | View,
    template: ChatTemplate,
    capacities: Capacities,
    progress: Callable[[int], None] = lambda done: None,
    *,
    may_be_empty: bool = False,
) -> RowPlan:
    """Cut every tree into pieces and plan how to pack the pieces into rows (see `pack_bins`).

    Raises:
      UserError: no pair fits in a row and `may_be_empty` is false.
    """
    counts: Counter = Counter()
    dropped: Counter = Counter()
    pieces: list[tuple[int, Piece, int]] = []
    sizes: list[Size] = []
    names: list[str] = []
    for index in range(len(trees)):
        tree = trees[index]
        encoder = TreeEncoder(tree, template)
        for piece in cut(encoder, capacities, dropped):
            pieces.append((index, piece, len(names)))
            sizes.append(encoder.size(piece))
            names += [tree.pairs[i].id for i in piece.pairs]
            counts['pairs_with_shortened_context'] += len(piece.pairs) * (piece.start != 0)
        counts['pairs_read'] += len(tree.pairs)
        counts['escaped_markup'] += encoder.escapes
        progress(index + 1)
    if not pieces and not may_be_empty:
        raise UserError(
            f'no pair fits in a row of {capacities.tokens} tokens with {capacities.scored} scored tokens (dropped: '
            f'{dict(dropped)}): raise config.rows.tokens and config.rows.scored'
        )
    rows = [[pieces[i] for i in row] for row in pack_bins(sizes, capacities)]
    tokens = sum(s.tokens for s in sizes)
    counts.update(pairs_kept=len(names), trees=len(trees), pieces=len(pieces), rows=len(rows), tokens=tokens)
    counts.update({f'dropped_{reason}': n for reason, n in dropped.items()})
    return RowPlan(rows, names, capacities, plan_identity(trees, template, capacities), dict(sorted(counts.items())))


def check_positions(plan: RowPlan, trees: Shards | View, template: ChatTemplate, *, most: int) -> None:
    """Check that no conversation in a row plan has more than `most` tokens, the maximum that the model can read.

    Raises:
      UserError: a conversation, including its reply, has more than `most` tokens.
    """
    if plan.capacities.tokens <= most:
        return  # no path is longer than its row
    longest = 0
    for row in plan.rows:
        for tree, piece, _ in row:
            encoder = TreeEncoder(trees[tree], template)
            longest = max(longest, int(lay_out(encoder.encode(piece)).position_T.max()) + 1)
    if longest > most:
        raise UserError(
            f'a conversation has {longest} tokens, but the model reads at most {most}: lower config.rows.tokens from '
            f"{plan.capacities.tokens} to {most} and rerun the 'rows' stage"
        )


def pack_bins(sizes: list[Size], capacities: Capacities) -> list[list[int]]:
    """Pack items of the given sizes into bins, so that no bin exceeds the capacity for tokens, scored tokens or pairs.

    The algorithm is best-fit decreasing by number of tokens (longest items first). Each bin is a list of indices into
    `sizes`. Bins are returned in the order in which they were opened.
    """
    bins: list[list[int]] = []
    left: list[list[int]] = []  # per bin: the tokens, scored tokens and pairs that still fit
    by_tokens_left: list[tuple[int, int]] = []  # sorted (tokens left, bin) for the bins that can take more
    least = [min(column) for column in zip(*sizes, strict=True)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i].tokens, i)):
        need = sizes[i]
        at = bisect.bisect_left(by_tokens_left, (need.tokens, -1))
        while at < len(by_tokens_left) and any(
            n > rest for n, rest in zip(need, left[by_tokens_left[at][1]], strict=True)
        ):
            at += 1
        if at < len(by_tokens_left):
            _, chosen = by_tokens_left.pop(at)
        else:
            chosen = len(bins)
            bins.append([])
            left.append([capacities.tokens, capacities.scored, capacities.pairs])
        bins[chosen].append(i)
        left[chosen] = [rest - n for rest, n in zip(left[chosen], need, strict=True)]
        if all(rest >= n for rest, n in zip(left[chosen], least, strict=True)):
            bisect.insort(by_tokens_left, (left[chosen][0], chosen))
    return bins


def save_plan(plan: RowPlan, folder: Path, manifest: dict[str, Any]) -> None:
    """Write a row plan's plan.npz, pairs.json and manifest.json to `folder`.

    The caller renames the folder into place.
    """
    flat = [piece for row in plan.rows for piece in row]
    arrays = dict(
        row_pieces=np.array([len(row) for row in plan.rows], np.int64),
        tree=np.array([tree for tree, _, _ in flat], np.int64),
        start=np.array([piece.start for _, piece, _ in flat], np.int64),
        first=np.array([first for _, _, first in flat], np.int64),
        piece_pairs=np.array([len(piece.pairs) for _, piece, _ in flat], np.int64),
        pairs=np.array([i for _, piece, _ in flat for i in piece.pairs], np.int64),
    )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(folder / 'plan.npz', buffer.getvalue())
    write_bytes(folder / 'pairs.json', json.dumps(plan.pair_names, ensure_ascii=False).encode())
    files = {name: file_digest(folder / name) for name in ('plan.npz', 'pairs.json')}
    write_json(folder / 'manifest.json', {**manifest, 'identity': plan.identity, 'counts': plan.counts, 'files': files})


def load_plan(folder: Path) -> tuple[RowPlan, dict[str, Any]]:
    """Read a row plan and its manifest.

    Raises:
      UserError: a file is missing, or its contents do not match the manifest.
    """
    folder = Path(folder)
    manifest = read_json(folder / 'manifest.json', _REMEDY, fields=('identity', 'counts', 'files'))
    for name, expected in manifest['files'].items():
        if not (folder / name).exists():
            raise UserError(f'{folder / name} is missing: {_REMEDY}')
        if file_digest(folder / name) != expected:
            raise UserError(f'{folder / name} is corrupt (its contents do not match the manifest): {_REMEDY}')
    arrays = np.load(folder / 'plan.npz')
    pair_ends = np.cumsum(arrays['piece_pairs'])
    pairs = np.split(arrays['pairs'], pair_ends[:-1])
    flat = [
        (int(tree), Piece(int(start), tuple(indices.tolist())), int(first))
        for tree, start, indices, first in zip(arrays['tree'], arrays['start'], pairs, arrays['first'], strict=True)
    ]
    row_ends = np.cumsum(arrays['row_pieces']).tolist()
    rows = [flat[start:end] for start, end in zip([0, *row_ends], row_ends, strict=False)]
    capacities = Capacities(**manifest['identity']['capacities'])
    names = read_json(folder / 'pairs.json', _REMEDY)
    return RowPlan(rows, names, capacities, manifest['identity'], manifest['counts']), manifest
