"""What trees and packing save on WildChat: tokens per pair, pairs dropped, padding, attention blocks skipped.

python tests/benchmarks/row_plan.py --conversations=conversations.jsonl

Every reply of a conversation but the last is rejected in favour of the next one, a stand-in for a rewrite of about its
length. A logged reply is on the trunk, a regenerated one is not. The comparison is one row per reply, with the same
context and no padding. Writes `results/row_plan.json`.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from peers.next_reply import pairs_by_conversation

from data_pipelines.preferences.layouts import parse_preferences
from rlhi_jax.data.encode import TreeEncoder
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.loader import RowReader
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities
from rlhi_jax.data.tree import BadRecord, Interaction
from rlhi_jax.io.files import digest, write_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.tree_blocks import BLOCK, Mask, live_blocks
from rlhi_jax.tokenizers.template import ChatTemplate

RESULTS = Path(__file__).parent / 'results'
TOKENS = (1024, 2048, 4096)


class Trees(list):
    """Trees in memory, with the digest that a plan needs."""

    digest = 'in memory'


def of_its_length(reply: dict) -> dict:
    """Another text of a reply's length, as if it had been regenerated."""
    return reply | dict(content=' '.join(reply['content'].split(' ')[::-1]) + '.')


def grown(path: Path, *, regenerated: bool) -> Trees:
    trees = Trees()
    for preferences in pairs_by_conversation(path).values():
        parsed = []
        for preference in preferences:
            if regenerated:
                preference = preference | dict(rejected=[of_its_length(reply) for reply in preference['rejected']])
            try:
                parsed += parse_preferences(preference, preference['id'], Counter())
            except BadRecord:
                continue
        trees += grow_trees(parsed)
    return trees


def apart(encoder: TreeEncoder, piece) -> int:
    """Tokens of a piece's pairs as one sequence for each reply."""
    tree = encoder.encode(piece)

    def path(node: int) -> int:
        total = 0
        while node >= 0:
            total += len(tree.nodes[node].ids)
            node = tree.nodes[node].parent
        return total

    return sum(path(tree.replies[reply][-1]) for pair in tree.pairs for reply in pair[:2])


def measure(trees: list[Interaction], template: ChatTemplate, tokens: int) -> dict:
    capacities = Capacities(tokens, 2 * tokens, 64)
    plan = make_plan(trees, template, capacities)
    pieces = [piece for row in plan.rows for piece in row]
    separate = sum(apart(TreeEncoder(trees[tree], template), piece) for tree, piece, _ in pieces)
    counts = Counter(plan.counts)
    reader = RowReader(plan, trees, template)
    some = sorted(range(len(reader)), key=lambda row: digest(row))[:64]
    live = np.concatenate(
        [np.asarray(live_blocks(Mask(jnp.asarray(reader[row].extent_T[None])), BLOCK)) for row in some]
    )
    blocks = live.shape[1]
    return dict(
        rows=len(plan.rows),
        pairs=counts['pairs_kept'],
        tokens_of_one_row_per_reply=separate / counts['pairs_kept'],
        tokens_per_pair=counts['tokens'] / counts['pairs_kept'],
        ratio=counts['tokens'] / separate,
        padding=1 - counts['tokens'] / (len(plan.rows) * tokens),
        dropped=counts['dropped_longer_than_a_row'] / counts['pairs_read'],
        shortened_context=counts['pairs_with_shortened_context'] / counts['pairs_kept'],
        causal_blocks_skipped=1 - float(live.sum()) / (len(some) * blocks * (blocks + 1) / 2),
        rows_looked_at_for_blocks=len(some),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--conversations', required=True, type=Path)
    parser.add_argument('--model', default='runs/smollm2')
    args = parser.parse_args()
    template = ChatTemplate.load(open_model(args.model).tokenizer_path)
    results = {}
    for name, regenerated in (('logged', False), ('regenerated', True)):
        trees = grown(args.conversations, regenerated=regenerated)
        results[name] = {str(tokens): measure(trees, template, tokens) for tokens in TOKENS}
        print(name, json.dumps(results[name], indent=1), flush=True)
    write_json(RESULTS / 'row_plan.json', results)


if __name__ == '__main__':
    main()
