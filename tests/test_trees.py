"""Trees against plain sequences: the same numbers and gradients, whatever shares a row."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhi_jax.conversion import gemma
from rlhi_jax.data.rows import Capacities, TokenNode, TokenPair, TokenTree, lay_out, pack, size, stack
from rlhi_jax.models.decoder import Decoder, output_head
from rlhi_jax.models.spec import LocalLayers, ModelSpec
from rlhi_jax.scoring.pairs import score_replies

VOCAB = 61
SIZES = (VOCAB, 32, 48, 2, 4, 2, 8, 512)
LOCAL = LocalLayers(window=7, period=2, rope_theta=100.0)  # shorter than many nodes, and than most paths
SPECS = {
    'qwen3': ModelSpec('qwen3', *SIZES, qk_norm=True, qkv_bias=True),
    'gemma2': gemma.of_family(ModelSpec('gemma2', *SIZES, local=LOCAL, attention_cap=1.0, logit_cap=2.0)),
    'gemma3': gemma.of_family(ModelSpec('gemma3', *SIZES, local=LOCAL, qk_norm=True, rope_factor=8.0)),
}
CAPACITIES = Capacities(tokens=160, scored=128, pairs=12)
LONGEST = 8 * 9  # tokens on a path of `draw_tree`


def draw_tree(rng: np.random.Generator, *, most_nodes: int = 8, longest: int = 9) -> TokenTree:
    """A random tree in depth-first order; its replies are parts of random paths."""
    nodes: list[TokenNode] = []

    def grow(parent: int, budget: int) -> int:
        index = len(nodes)
        ids = tuple(rng.integers(0, VOCAB, rng.integers(1, longest)).tolist())
        nodes.append(TokenNode(parent, ids, int(rng.integers(0, len(ids) + 1)) if parent >= 0 else 0))
        budget -= 1
        while budget > 0 and rng.random() < 0.7:
            budget = grow(index, budget)
        return budget

    grow(-1, int(rng.integers(3, most_nodes)))
    if len(nodes) < 3:
        nodes += [TokenNode(0, (1, 2, 3), 3), TokenNode(0, (1, 2, 4), 2)]
    replies = []
    for _ in range(rng.integers(2, 5)):
        node = int(rng.integers(1, len(nodes)))
        path = []
        while node > 0:
            path.append(node)
            node = nodes[node].parent
        replies.append(path[: rng.integers(1, len(path) + 1)][::-1])
    pairs = [tuple(rng.choice(len(replies), 2, replace=False).tolist()) for _ in range(rng.integers(1, 4))]
    return TokenTree(nodes, replies, [TokenPair(a, b, float(rng.random()), 0.0, i) for i, (a, b) in enumerate(pairs)])


def path_of(tree: TokenTree, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = tree.nodes[node].parent
    return path[::-1]


def plain_rows(tree: TokenTree, reply) -> tuple[np.ndarray, np.ndarray]:
    """One ordinary causal sequence for one reply, [LONGEST] tokens and which of them are scored; padded at the end."""
    tokens, scored = np.zeros(LONGEST, np.int32), np.zeros(LONGEST, np.float32)
    at = 0
    for node in path_of(tree, reply[-1]):
        ids = tree.nodes[node].ids
        tokens[at : at + len(ids)] = ids
        if node in reply:
            scored[at : at + tree.nodes[node].scored] = 1
        at += len(ids)
    return tokens, scored


def plain_logprobs(decoder: Decoder, params, tokens: jax.Array, scored: jax.Array) -> jax.Array:
    """Summed log-probabilities from a causal pass and the full logits: nothing of the tree machinery."""
    steps = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.apply({'params': params}, tokens, steps, tokens.shape[1] - steps)
    logp = jax.nn.log_softmax(output_head(decoder.spec, params).logits(hidden[:, :-1]))
    chosen = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(chosen * scored[:, 1:], axis=-1)


def params_of(spec: ModelSpec):
    row = jnp.zeros((1, 1), jnp.int32)
    return nn.unbox(Decoder(spec).init(jax.random.key(0), row, row, row + 1)['params'])


PARAMS = {family: params_of(spec) for family, spec in SPECS.items()}


def relative_l2(a, b) -> float:
    """The largest relative L2 distance over tensors.

    Where each query sees one token, softmax leaves no gradient for queries and keys, and both sides are only rounding.
    Their tensors are therefore compared with a hundredth of the largest tensor if they are smaller: at 1e-5, they may
    then be off by one float32 rounding of the largest.
    """
    leaves = list(zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True))
    rounding = 1e-2 * max(float(np.linalg.norm(y)) for _, y in leaves)

    def distance(path, x, y) -> float:
        of = float(np.linalg.norm(y))
        if path[-1].key.partition('_')[0] in ('q', 'k'):
            of = max(of, rounding)
        return float(np.linalg.norm(x - y)) / (of or 1e-30)  # where nothing is scored, both must be zero

    return max(distance(path, x, y) for (path, x), y in leaves)


def forest_that_fits(rng: np.random.Generator, capacities: Capacities) -> list[TokenTree]:
    trees, left = [], np.array(dataclasses.astuple(capacities))
    for _ in range(int(rng.integers(1, 6))):
        tree = draw_tree(rng)
        if (np.array(size(tree)) <= left).all():
            trees.append(tree)
            left = left - np.array(size(tree))
    return trees or [
        TokenTree(
            [TokenNode(-1, (1,)), TokenNode(0, (2,), 1), TokenNode(0, (3,), 1)],
            [[1], [2]],
            [TokenPair(0, 1, 1.0, 0.0, 0)],
        )
    ]


@functools.partial(jax.jit, static_argnums=0)
def packed_gradient(family, params, batch, weights):
    def value(params):
        logp = score_replies(Decoder(SPECS[family]), params, batch, chunk=32).logp_BR[0]
        return (weights * logp).sum(), logp

    return jax.grad(value, has_aux=True)(params)


@functools.partial(jax.jit, static_argnums=0)
def plain_gradient(family, params, tokens, scored, weights):
    def value(params):
        logp = plain_logprobs(Decoder(SPECS[family]), params, tokens, scored)
        return (weights * logp).sum(), logp

    return jax.grad(value, has_aux=True)(params)


@pytest.mark.parametrize('family', SPECS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_forests_match_plain_sequences(family, seed):
    rng = np.random.default_rng(seed)
    forest = forest_that_fits(rng, CAPACITIES)
    batch = stack([pack([lay_out(tree) for tree in forest], CAPACITIES)])
    replies = [(tree, reply) for tree in forest for reply in tree.replies]
    weights = np.zeros(CAPACITIES.replies, np.float32)
    # All of one sign: where the gradients of replies cancel, only rounding would be left to compare.
    weights[: len(replies)] = rng.uniform(0.5, 1.5, size=len(replies))
    plain = [plain_rows(tree, reply) for tree, reply in replies]
    plain += [(np.zeros(LONGEST, np.int32), np.zeros(LONGEST, np.float32))] * (CAPACITIES.replies - len(plain))
    tokens, scored = (np.stack(column) for column in zip(*plain, strict=True))
    packed_grad, packed_logp = packed_gradient(family, PARAMS[family], batch, weights)
    plain_grad, plain_logp = plain_gradient(family, PARAMS[family], tokens, scored, weights)
    np.testing.assert_allclose(packed_logp, plain_logp, rtol=1e-5, atol=1e-5)
    assert relative_l2(packed_grad, plain_grad) <= 1e-5
