"""Computes the memory and disk space that training needs, in closed form."""

from rlhi_jax.models.spec import ModelSpec

_TRAINED = 16  # bytes per parameter in training: float32 parameter, gradient and AdamW's two moments
_SAVED = 12  # bytes per parameter in a checkpoint: float32 parameter and the two moments
_EXPORTED = 4


def num_parameters(spec: ModelSpec) -> int:
    """Return the number of parameters in a decoder."""
    attention = spec.width * spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)
    biases = spec.head_dim * (spec.num_heads + 2 * spec.num_kv_heads) * spec.qkv_bias
    norms = (2 + 2 * spec.post_norms) * spec.width + 2 * spec.head_dim * spec.qk_norm
    layer = attention + biases + 3 * spec.width * spec.mlp_width + norms
    head = spec.width * (spec.head == 'reward') + spec.vocab_size * spec.width * spec.has_unembed
    return spec.num_layers * layer + spec.vocab_size * spec.width + spec.width + head


def training_bytes(parameters: int) -> int:
    """Return the bytes that parameters, gradients and optimizer state take in training, without activations."""
    return _TRAINED * parameters


def disk_bytes(parameters: int, *, keep: int) -> int:
    """Return the bytes of a finished training run on disk: `keep` checkpoints, one being written, and the export."""
    return (_SAVED * (keep + 1) + _EXPORTED) * parameters
