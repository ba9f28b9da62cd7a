"""The decoder's matrix products: operands have the compute dtype, and sums are float32, also in the gradient."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhi_jax.models.decoder import Decoder, output_head
from rlhi_jax.models.linear import frozen_linear, linear
from rlhi_jax.models.parameters import init_params

DIMS = ('BTD,DNH->BTNH', 'BTNH,NHD->BTD', 'CD,VD->CV')
SIZES = dict(B=2, T=5, D=48, N=3, H=8, C=7, V=40)


def operands(dims: str, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [[SIZES[axis] for axis in axes] for axes in dims.replace('->', ',').split(',')]
    return tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))


def in_float64(dims: str, x, kernel, dy):
    x, kernel, dy = (np.asarray(value, np.float64) for value in (x, kernel, dy))
    operands, of_y = dims.split('->')
    of_x, of_kernel = operands.split(',')
    return (
        np.einsum(dims, x, kernel),
        np.einsum(f'{of_y},{of_kernel}->{of_x}', dy, kernel),
        np.einsum(f'{of_x},{of_y}->{of_kernel}', x, dy),
    )


@pytest.mark.parametrize('dims', DIMS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_products_and_gradients_are_those_in_float64_but_for_the_last_rounding(dims, dtype):
    x, kernel, dy = operands(dims, dtype)
    expected = in_float64(dims, x, kernel, dy)
    y, gradients = jax.vjp(lambda x, kernel: linear(dims, x, kernel, jnp.float32), x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-4)
    frozen, to_x = jax.vjp(lambda x: frozen_linear(dims, x, kernel), x)
    np.testing.assert_array_equal(frozen, y.astype(dtype))
    for ours, theirs in zip((*gradients(dy.astype(y.dtype)), *to_x(dy)), (*expected[1:], expected[1]), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=jnp.finfo(dtype).eps, atol=1e-4)


def test_a_bfloat16_step_multiplies_bfloat16_and_sums_in_float32():
    """On CPUs with bfloat16 instructions, XLA uses them only for such products."""
    decoder = Decoder(tiny.SPEC, dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda: nn.unbox(init_params(decoder, jax.random.key(0))))
    tokens_BT = jnp.zeros((2, 8), jnp.int32)

    def value(params):
        hidden_BTD = decoder.apply({'params': params}, tokens_BT, tokens_BT, tokens_BT + 1)
        return output_head(tiny.SPEC, params).logits(hidden_BTD).sum()

    program = jax.jit(jax.grad(value)).lower(params).as_text()
    products = re.findall(r'dot_general .*: \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\) -> tensor<.*x(\w+)>', program)
    of_parameters = [dtypes for dtypes in products if dtypes[:2] == ('bf16', 'bf16')]
    assert of_parameters == [('bf16', 'bf16', 'f32')] * len(of_parameters)
    assert len(of_parameters) >= 3 * 8  # seven matrices of a layer and the head, forward and two gradients
