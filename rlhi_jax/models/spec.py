"""The settings in which decoders of the Llama family differ, as plain numbers and switches."""

import dataclasses
from typing import Any

from rlhi_jax.io.errors import UserError

FAMILIES = ('llama', 'mistral', 'qwen2', 'qwen3')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency-dependent scaling of rotary embeddings (Llama 3 report, arXiv 2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The architecture of one decoder of the Llama family.

    `head` is 'lm' (next-token logits) or 'reward' (one Bradley-Terry score per position).
    """

    family: str
    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    head: str = 'lm'

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise UserError(f'model family {self.family!r} is not supported: choose one of {", ".join(FAMILIES)}')
        if self.head not in ('lm', 'reward'):
            raise UserError(
                f"the model's head is {self.head!r}, but it must be 'lm' or 'reward': import the model again"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f'num_heads is {self.num_heads}, which is not a multiple of num_kv_heads ({self.num_kv_heads}): choose '
                'another model'
            )

    @property
    def has_unembed(self) -> bool:
        """Whether the model has an output matrix separate from the embedding."""
        return self.head == 'lm' and not self.tied_embeddings

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> 'ModelSpec':
        scaling = fields.get('rope_scaling')
        try:
            return cls(**{**fields, 'rope_scaling': RopeScaling(**scaling) if scaling else None})
        except TypeError as error:
            raise UserError(
                f'model.json has missing or unknown fields under "spec" ({error}): import the model again'
            ) from None
