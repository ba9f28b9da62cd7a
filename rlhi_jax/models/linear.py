"""Matrix products of activations with parameters, and their gradients.

Both operands have the compute dtype, also in the gradient.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def linear(dims: str, x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """Return `jnp.einsum(dims, x, kernel)`.

    The gradient of the kernel is computed in the kernel's own axis order. JAX would otherwise compute its transpose,
    and on a CPU, XLA would then recompute the gradient of an activation column by column.

    Args:
      dims: the axes of `x`, of `kernel` and of the result, in the notation of `einsum`, without an ellipsis.
      x: activations.
      kernel: a parameter, in the dtype of `x`.
      dtype: the dtype of the result; None for that of `x`. The gradient of the result is rounded to the dtype of `x`.
    """
    return _product(dims, x, kernel, dtype)


def _linear_backward(
    dims: str, dtype: Any, inputs: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del dtype
    x, kernel = inputs
    of_x, of_kernel, of_y = _axes(dims)
    dy = dy.astype(x.dtype)
    return _product(f'{of_y},{of_kernel}->{of_x}', dy, kernel), _product(f'{of_x},{of_y}->{of_kernel}', x, dy)


linear.defvjp(lambda dims, x, kernel, dtype: (linear(dims, x, kernel, dtype), (x, kernel)), _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def frozen_linear(dims: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return `jnp.einsum(dims, x, kernel)` in the dtype of `x`; the kernel has no gradient.

    The kernel is kept in its stored dtype for the backward pass, which casts it again and does not need `x`.
    """
    return _product(dims, x, kernel.astype(x.dtype))


def _frozen_linear_backward(dims: str, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, None]:
    of_x, of_kernel, of_y = _axes(dims)
    return _product(f'{of_y},{of_kernel}->{of_x}', dy, kernel.astype(dy.dtype)), None


frozen_linear.defvjp(lambda dims, x, kernel: (frozen_linear(dims, x, kernel), kernel), _frozen_linear_backward)


def _product(dims: str, a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """Return `jnp.einsum(dims, a, b)` in the dtype of `a`, or in `dtype`.

    On CPUs with bfloat16 instructions, XLA uses these only if the result is float32. Elsewhere, such a result would
    have to be summed over devices in float32, which doubles what they send.
    """

    def product(a: jax.Array, b: jax.Array, result: Any) -> jax.Array:
        return jnp.einsum(dims, a, b, preferred_element_type=result).astype(dtype or a.dtype)

    narrow = functools.partial(product, result=dtype)
    if a.dtype == jnp.float32:
        return narrow(a, b)
    return jax.lax.platform_dependent(a, b, cpu=functools.partial(product, result=jnp.float32), default=narrow)


def _axes(dims: str) -> tuple[str, str, str]:
    operands, of_y = dims.split('->')
    return *operands.split(','), of_y
