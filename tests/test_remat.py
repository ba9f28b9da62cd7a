"""Remat policies on a mesh: through `shard_map` they save what they name, and the gradient stays the same."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhi_jax.conversion import gemma
from rlhi_jax.cost.flops import REPEATED
from rlhi_jax.data.rows import Batch, Capacities, TokenNode, TokenPair, TokenTree, lay_out, pack, stack
from rlhi_jax.models.decoder import REMAT_POLICIES, Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.models.spec import LocalLayers, ModelSpec
from rlhi_jax.models.tree_blocks import BLOCK
from rlhi_jax.parallel.sharding import make_mesh, on_mesh

SIZES = dict(data=2, fsdp=2, tensor=2)
ROWS, TOKENS = 8, 24
LAYERS, WIDTH, MLP = tiny.SPEC.num_layers, tiny.SPEC.width, tiny.SPEC.mlp_width
HEADS, KV_HEADS, HEAD_DIM = tiny.SPEC.num_heads, tiny.SPEC.num_kv_heads, tiny.SPEC.head_dim

# Shapes that a layer saves. `shard_map` concatenates what each device saves along the first axis, also where the parts
# are of different heads, as in the log-sum-exp of attention, the last shape of ATTENTION.
HIDDEN = [(ROWS, TOKENS, WIDTH)]
ATTENTION = [
    (ROWS, TOKENS, HEADS, HEAD_DIM),
    *[(ROWS, TOKENS, KV_HEADS, HEAD_DIM)] * 2,
    (ROWS, BLOCK, HEADS, HEAD_DIM),
    (ROWS * SIZES['tensor'], HEADS // SIZES['tensor'], BLOCK),
]
DOTS = [(ROWS, TOKENS, WIDTH), *[(ROWS, TOKENS, MLP)] * 2]
SAVED = {
    'save_dots': HIDDEN + ATTENTION + DOTS,
    'save_attention': HIDDEN + ATTENTION,
    'save_nothing': HIDDEN,
}


@pytest.fixture(scope='module')
def params():
    return nn.unbox(init_params(Decoder(tiny.SPEC), jax.random.key(0)))


def batch() -> Batch:
    tree = TokenTree([TokenNode(-1, tuple(range(12))), TokenNode(0, (3,) * 4, 4), TokenNode(0, (5,) * 6, 6)],
                     [[1], [2]], [TokenPair(0, 1, 1.0, 0.0, 0)])  # fmt: skip
    return stack([pack([lay_out(tree)], Capacities(TOKENS, 16, 1))] * ROWS)


def gradient(policy: str, spec: ModelSpec = tiny.SPEC):
    decoder = Decoder(spec, remat=policy)

    def value(params, rows):
        hidden_BTD = decoder.apply({'params': params}, rows.tokens_BT, rows.position_BT, rows.extent_BT)
        return jnp.sin(hidden_BTD).sum()

    return jax.grad(value)


def equations(jaxpr: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every equation of a program, with the names of the primitives that it stands in."""
    for equation in jaxpr.eqns:
        yield above, equation
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
            inner = getattr(part, 'jaxpr', part)
            if hasattr(inner, 'eqns'):
                yield from equations(inner, (*above, equation.primitive.name))


def program(policy: str, params) -> list[tuple[tuple[str, ...], Any]]:
    with on_mesh(make_mesh(SIZES)):
        return list(equations(jax.make_jaxpr(gradient(policy))(params, batch()).jaxpr))


def saved(policy: str, params) -> list[tuple[int, ...]]:
    """Shapes that the pass over the layers hands to the gradient, of one layer."""
    scans = [equation for above, equation in program(policy, params) if equation.primitive.name == 'scan' and not above]
    shapes = [variable.aval.shape for variable in scans[0].outvars]
    return sorted(shape[1:] for shape in shapes if shape[:1] == (LAYERS,))


def recomputed(policy: str, params) -> tuple[int, int]:
    """Matrix products, and passes of attention, in what the gradient of a layer runs."""
    inside = [(above, e.primitive.name) for above, e in program(policy, params) if above[:1] == ('scan',)]
    inside = [(above, name) for above, name in inside if any(outer in ('remat2', 'checkpoint') for outer in above)]
    products = sum(name == 'dot_general' and 'shard_map' not in above for above, name in inside)
    return products, sum(name == 'scan' and above.count('scan') == 1 and 'shard_map' in above for above, name in inside)


@pytest.mark.parametrize('policy', SAVED)
def test_a_policy_saves_what_it_names(policy, params):
    assert saved(policy, params) == sorted(SAVED[policy])


def test_what_is_saved_is_not_computed_again(params):
    base_products, base_passes = recomputed('save_dots', params)
    for policy in SAVED:
        products, passes = recomputed(policy, params)
        assert products - base_products == len(REPEATED[policy]), policy
        assert passes - base_passes == (policy == 'save_nothing'), policy
    assert SAVED.keys() | {'save_all'} == REMAT_POLICIES.keys()


@pytest.mark.parametrize('policy', SAVED)
def test_gradients_are_those_without_remat(policy, params):
    with on_mesh(make_mesh(SIZES)):
        ours, expected = (jax.jit(gradient(name))(params, batch()) for name in (policy, 'save_all'))
    assert_near(ours, expected)


@pytest.mark.parametrize('policy', SAVED)
def test_gradients_of_gemma_on_a_mesh_are_those_of_one_device(policy):
    local = LocalLayers(window=5, period=2, rope_theta=100.0)
    spec = gemma.of_family(
        dataclasses.replace(tiny.SPEC, family='gemma2', num_layers=3, local=local, attention_cap=1.0)
    )
    params = nn.unbox(init_params(Decoder(spec), jax.random.key(0)))
    expected = jax.jit(gradient('save_all', spec))(params, batch())
    with on_mesh(make_mesh(SIZES)):
        assert_near(jax.jit(gradient(policy, spec))(params, batch()), expected)


def assert_near(ours, expected):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)
