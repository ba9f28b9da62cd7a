"""Computes the memory and disk space that training needs, in closed form."""

from rlhi_jax.cost.flops import matrices
from rlhi_jax.models.lora import Lora
from rlhi_jax.models.spec import ModelSpec

_TRAINED = 16  # bytes per parameter in training: float32 parameter, gradient and AdamW's two moments
_SAVED = 12  # bytes per parameter in a checkpoint: float32 parameter and the two moments
_EXPORTED = 4  # bytes per parameter in an exported model: float32
_FROZEN = {'float32': 4, 'bfloat16': 2}  # bytes per frozen parameter in training


def num_parameters(spec: ModelSpec) -> int:
    """Return the number of parameters in a decoder."""
    attention = spec.width * spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)
    biases = spec.head_dim * (spec.num_heads + 2 * spec.num_kv_heads) * spec.qkv_bias
    norms = (2 + 2 * spec.post_norms) * spec.width + 2 * spec.head_dim * spec.qk_norm
    layer = attention + biases + 3 * spec.width * spec.mlp_width + norms
    head = spec.width * (spec.head == 'reward') + spec.vocab_size * spec.width * spec.has_unembed
    return spec.num_layers * layer + spec.vocab_size * spec.width + spec.width + head


def num_trained(spec: ModelSpec, lora: Lora | None) -> int:
    """Return the number of trained parameters.

    With adapters, only the adapters and any reward head are trained; without adapters, all parameters are.
    """
    if lora is None:
        return num_parameters(spec)
    sides = sum(sum(matrices(spec)[name]) for name in lora.targets)
    return spec.num_layers * lora.rank * sides + spec.width * (spec.head == 'reward')


def training_bytes(spec: ModelSpec, lora: Lora | None) -> int:
    """Return the memory for parameters, gradients and optimizer state in training, in bytes, without activations."""
    frozen = _FROZEN[lora.base_dtype] * num_parameters(spec) if lora else 0
    return _TRAINED * num_trained(spec, lora) + frozen


def disk_bytes(spec: ModelSpec, lora: Lora | None, *, keep: int) -> int:
    """Return the disk space for a training run, in bytes: `keep` checkpoints, one being written, and the export."""
    return _SAVED * (keep + 1) * num_trained(spec, lora) + _EXPORTED * num_parameters(spec)
