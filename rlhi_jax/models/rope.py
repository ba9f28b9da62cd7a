"""Rotary position embeddings (RoFormer, arXiv 2104.09864), with Llama 3's scaling.

Dimension key: B rows, T tokens, N heads, H head width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlhi_jax.models.spec import ModelSpec


def inverse_frequencies(spec: ModelSpec) -> np.ndarray:
    """Return the global layers' rotation speeds in radians per position, [H/2] float32.

    Under Llama 3's scaling, wavelengths above `original_max_positions / low_freq_factor` are stretched by `factor`, and
    wavelengths below `original_max_positions / high_freq_factor` are left unchanged. Between these two limits, the
    stretched and the unchanged frequency are blended.
    """
    frequency = _unscaled(spec.rope_theta, spec.head_dim) / np.float32(spec.rope_factor)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequency.astype(np.float32)
    turns = scaling.original_max_positions * frequency / (2 * np.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (keep * frequency + (1 - keep) * frequency / scaling.factor).astype(np.float32)


def local_frequencies(spec: ModelSpec) -> np.ndarray:
    """Return the local layers' rotation speeds in radians per position, [H/2] float32."""
    return _unscaled(spec.local.rope_theta, spec.head_dim)


def _unscaled(theta: float, head_dim: int) -> np.ndarray:
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return 1.0 / np.power(np.float32(theta), exponent, dtype=np.float32)


def rotation(position_BT: jax.Array, frequency: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return two float32 arrays [B, T, H/2]: the cosines and the sines of each token's rotation angles."""
    angle = position_BT[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate each head by its token's angles in float32, and return the result in the input's dtype.

    A rotation acts on two values at a time: those at the same index in the first and the second half of the head.
    """
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
