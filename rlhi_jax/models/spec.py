"""The settings in which decoders of the Llama and Gemma families differ, as plain numbers and switches."""

import dataclasses
from typing import Any

from rlhi_jax.io.errors import UserError

FAMILIES = ('llama', 'mistral', 'qwen2', 'qwen3', 'gemma2', 'gemma3')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency-dependent scaling of rotary embeddings (Llama 3 report, arXiv 2407.21783).

    `rlhi_jax.models.rope.inverse_frequencies` explains the fields.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LocalLayers:
    """Layers with a sliding window: all layers except every `period`-th, which is global.

    Attributes:
      window: a token attends to the last `window` tokens on its path, including itself.
      period: with 2, local and global layers alternate; with 6, each global layer follows five local layers.
      rope_theta: the base of the local layers' rotary embedding.
    """

    window: int
    period: int
    rope_theta: float


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The architecture of one decoder of the Llama or Gemma family.

    Attributes:
      local: the local layers; None if all layers are global.
      rope_factor: in global layers, positions are divided by this number before the rotation.
      post_norms: whether the outputs of attention and of the MLP are normalized before they are added to the residual
        stream.
      activation: the MLP's activation function, 'silu' or 'gelu' (in its tanh approximation).
      scaled_embeddings: whether embeddings are multiplied by the square root of the width.
      query_width: attention logits are divided by the square root of this number; None means `head_dim`.
      attention_cap, logit_cap: caps of the attention logits and of the next-token logits, applied as
        `cap * tanh(logit / cap)`; None means no cap.
      head: 'lm' (next-token logits) or 'reward' (one Bradley-Terry score per position).
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
    local: LocalLayers | None = None
    rope_factor: float = 1.0
    post_norms: bool = False
    activation: str = 'silu'
    scaled_embeddings: bool = False
    query_width: int | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None

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

    @property
    def is_local(self) -> tuple[bool, ...]:
        """For each layer, whether it has a sliding window."""
        period = self.local.period if self.local else 1
        return tuple((layer + 1) % period > 0 for layer in range(self.num_layers))

    @property
    def num_local(self) -> int:
        """The number of layers with a sliding window."""
        return sum(self.is_local)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, without the default values of fields that only Gemma models use."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in _GEMMA or value != _GEMMA[name]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> 'ModelSpec':
        scaling, local = fields.get('rope_scaling'), fields.get('local')
        try:
            parts = dict(
                rope_scaling=RopeScaling(**scaling) if scaling else None, local=LocalLayers(**local) if local else None
            )
            return cls(**{**fields, **parts})
        except TypeError as error:
            raise UserError(
                f'model.json has missing or unknown fields under "spec" ({error}): import the model again'
            ) from None


# The fields that only Gemma models use, with their default values. A model.json contains them only if they differ.
_GEMMA = {
    field.name: field.default
    for field in dataclasses.fields(ModelSpec)
    if field.name in ('local', 'rope_factor', 'post_norms', 'activation', 'scaled_embeddings', 'query_width')
    or field.name.endswith('_cap')
}
