"""Logical axes on the mesh: every axis that is named has a rule, and no mesh axis is used twice."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny

from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import abstract_params, init_params
from rlhi_jax.parallel.sharding import RULES, constrain, make_mesh, on_mesh, resolve, shardings_of

SIZES = dict(data=2, fsdp=2, tensor=2)


class Dense(nn.Module):
    """One parameter with the given logical axes, in a module of its own."""

    axes: tuple[str, ...]

    @nn.compact
    def __call__(self):
        init = nn.with_logical_partitioning(nn.initializers.ones, self.axes) if self.axes else nn.initializers.ones
        return self.param('kernel', init, (8, 8), jnp.float32)


class Model(nn.Module):
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self):
        return Dense(self.axes, name='layer')()


def layout(*axes: str):
    boxed = jax.eval_shape(lambda: Model(axes).init(jax.random.key(0))['params'])
    return shardings_of(boxed, make_mesh(SIZES))['layer']['kernel'].spec


def test_axes_follow_the_rules():
    assert layout('vocab', 'embed') == jax.P('tensor', 'fsdp')
    assert layout('embed', 'head_dim') == jax.P('fsdp', None)
    assert resolve(('batch', None, 'heads'), 'x') == jax.P(('data', 'fsdp'), None, 'tensor')


def test_a_misspelt_axis_is_refused_by_name():
    with pytest.raises(ValueError, match=r"the parameter layer/kernel.*'embbed'.*batch, shared_rows.*add a rule"):
        layout('embbed', 'mlp')
    with pytest.raises(ValueError, match=r"activation of shape \(4, 8\).*'lenght'"):
        constrain(jnp.zeros((4, 8)), ('batch', 'lenght'))
    with on_mesh(make_mesh(SIZES)), pytest.raises(ValueError, match="'lenght'"):
        jax.jit(lambda x: constrain(x, ('batch', 'lenght')))(jnp.zeros((4, 8)))


def test_a_mesh_axis_used_twice_is_refused_by_name():
    with pytest.raises(ValueError, match=r"parameter layer/kernel .*'heads' and 'mlp'.*axis 'tensor'"):
        layout('heads', 'mlp')
    with pytest.raises(ValueError, match=r"'batch' and 'embed'.*mesh axis 'fsdp'"):
        constrain(jnp.zeros((4, 8)), ('batch', 'embed'))
    with pytest.raises(ValueError, match=r"'embed' and 'embed'.*mesh axis 'fsdp'"):
        layout('embed', 'embed')


def test_every_dimension_must_be_named():
    with pytest.raises(ValueError, match='the parameter layer/kernel does not name each of its axes'):
        layout()
    with pytest.raises(ValueError, match='the parameter layer/kernel does not name each of its axes'):
        layout('embed')
    with pytest.raises(ValueError, match='pass one axis per dimension'):
        constrain(jnp.zeros((4, 8)), ('batch',))


@pytest.mark.parametrize('head', ['lm', 'reward'])
def test_every_parameter_of_a_decoder_has_a_layout(head):
    """Also those that not all models have: biases, norms of queries and keys, an output matrix of its own."""
    spec = dataclasses.replace(tiny.SPEC, head=head, qkv_bias=True, qk_norm=True, tied_embeddings=False)
    mesh = make_mesh(SIZES)
    params = abstract_params(Decoder(spec), mesh)
    boxed = jax.eval_shape(lambda: init_params(Decoder(spec), jax.random.key(0)))
    axes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for param, box in zip(jax.tree.leaves(params), axes, strict=True):
        split = [RULES[axis] for axis in box.names]
        for dimension, mesh_axes in enumerate(split):
            parts = 2 ** len(mesh_axes)
            assert param.sharding.shard_shape(param.shape)[dimension] * parts == param.shape[dimension]


def test_constrain_lays_out_on_a_mesh_and_does_nothing_without():
    x = jnp.zeros((8, 4, 16))
    assert constrain(x, ('batch', 'length', 'activation')) is x
    with on_mesh(make_mesh(SIZES)):
        y = jax.jit(lambda x: constrain(x, ('shared_rows', 'length', 'embed')))(x)
    assert y.sharding.shard_shape(y.shape) == (4, 4, 8)
