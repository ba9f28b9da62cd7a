"""Converts the settings and weights that Gemma 2 and Gemma 3 files store differently from other families.

Some of these settings are not in the files, because Google's code and llama.cpp derive them from the model's size.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhi_jax.conversion.fields import count, number, unsupported
from rlhi_jax.conversion.layout import Leaf
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.spec import LocalLayers, ModelSpec

FAMILIES = ('gemma2', 'gemma3')
ACTIVATION = 'gelu_pytorch_tanh'
_LOCAL, _GLOBAL = 'sliding_attention', 'full_attention'
# Values that Hugging Face assumes for missing fields.
_DEFAULTS = {
    'gemma2': dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window_pattern=2),
    'gemma3': dict(attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window_pattern=6),
}
_SIZES = dict(sliding_window=4096, query_pre_attn_scalar=256)
_THETA = {'gemma2': (10_000.0, 10_000.0), 'gemma3': (1_000_000.0, 10_000.0)}  # of global and local layers
# Number of layers of the 27B models, which divide queries by √(model width / heads) instead of √(head width).
_LAYERS_27B = {'gemma2': 46, 'gemma3': 62}


def of_family(spec: ModelSpec) -> ModelSpec:
    """Return a copy of the spec with the settings that all Gemma 2 and Gemma 3 models share."""
    return dataclasses.replace(spec, post_norms=True, activation='gelu', scaled_embeddings=True)


def from_hf(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """Return the spec, completed with the settings in a config.json.

    Raises:
      UserError: a field's value is not supported.
    """
    config = {**_SIZES, **_DEFAULTS[spec.family], **config}
    if spec.family == 'gemma3' and config['attn_logit_softcapping'] is not None:
        cap = config['attn_logit_softcapping']
        raise unsupported(f'attn_logit_softcapping is {cap!r}', 'null in Gemma 3, whose attention does not use it')
    attention_cap, logit_cap = (
        None if config[name] is None else number(config, name)
        for name in ('attn_logit_softcapping', 'final_logit_softcapping')
    )
    theta, factor = _rope(config, _GLOBAL, 'rope_theta', _THETA[spec.family][0])
    field = 'rope_theta' if spec.family == 'gemma2' else 'rope_local_base_freq'
    local_theta, local_factor = _rope(config, _LOCAL, field, _THETA[spec.family][1])
    if local_factor != 1 or (spec.family == 'gemma2' and factor != 1):
        raise unsupported('rope_type of local layers is not default', "'default'")
    return dataclasses.replace(
        of_family(spec),
        local=LocalLayers(count(config, 'sliding_window'), _period(config, spec.num_layers), local_theta),
        rope_theta=theta,
        rope_factor=factor,
        query_width=count(config, 'query_pre_attn_scalar'),
        attention_cap=attention_cap,
        logit_cap=logit_cap,
    )


def _rope(config: Mapping[str, Any], kind: str, field: str, default: float) -> tuple[float, float]:
    """Return the rotary base of local or global layers, and the factor that divides their positions."""
    stated = config.get('rope_parameters') or {}
    stated = stated.get(kind, stated) if isinstance(stated, Mapping) else stated
    scaling = config.get('rope_scaling') if kind == _GLOBAL else None
    for name, value in (('rope_parameters', stated), ('rope_scaling', scaling or {})):
        if not isinstance(value, Mapping):
            raise UserError(f'config.json: {name} is {json.dumps(value)[:80]}: set it to a JSON object')
    rope = {**stated, **(scaling or {})}
    theta = number({field: rope.get('rope_theta') or config.get(field) or default}, field)
    rope_type = rope.get('rope_type') or rope.get('type') or 'default'
    if rope_type not in ('default', 'linear'):
        raise unsupported(f'rope_type is {rope_type!r}', "'default' and 'linear'")
    return theta, number(rope, 'factor', 'rope_parameters') if rope_type == 'linear' else 1.0


def _period(config: Mapping[str, Any], num_layers: int) -> int:
    """Return the period n of the attention types: every n-th layer is global, and all other layers are local."""
    types = config.get('layer_types')
    if types is None:
        return count(config, 'sliding_window_pattern')
    if not isinstance(types, list) or len(types) != num_layers:
        raise UserError(f'config.json: layer_types is not a list of {num_layers} names: correct it or remove it')
    period = types.index(_GLOBAL) + 1 if _GLOBAL in types else num_layers + 1
    if types != _types(num_layers, period):
        raise unsupported('layer_types is not periodic', 'local layers with every n-th layer global')
    return period


def _types(num_layers: int, period: int) -> list[str]:
    return [_LOCAL if layer % period else _GLOBAL for layer in range(1, num_layers + 1)]


def to_hf(spec: ModelSpec) -> dict[str, Any]:
    """Return the fields of config.json that are specific to Gemma models."""
    fields = {
        'hidden_activation': ACTIVATION,
        'attention_bias': False,
        'sliding_window': spec.local.window,
        'sliding_window_pattern': spec.local.period,
        'layer_types': _types(spec.num_layers, spec.local.period),
        'query_pre_attn_scalar': spec.query_width,
        'attn_logit_softcapping': spec.attention_cap,
        'final_logit_softcapping': spec.logit_cap,
    }
    if spec.family == 'gemma3':
        scaled = spec.rope_factor != 1
        fields['rope_local_base_freq'] = spec.local.rope_theta
        fields['rope_scaling'] = {'rope_type': 'linear', 'factor': spec.rope_factor} if scaled else None
    return fields


def from_stored(tensor: np.ndarray, leaf: Leaf, spec: ModelSpec) -> np.ndarray:
    """Return a tensor from a Hugging Face file as we store it.

    We add 1 to the scales of Gemma's norms, because the files store them minus 1.
    """
    return tensor.astype(np.float32) + np.float32(1) if _is_scale(leaf, spec) else tensor


def to_stored(array: np.ndarray, leaf: Leaf, spec: ModelSpec) -> np.ndarray:
    """Return a parameter as Hugging Face files store it. This inverts `from_stored`, up to rounding."""
    return array - np.float32(1) if _is_scale(leaf, spec) else array


def _is_scale(leaf: Leaf, spec: ModelSpec) -> bool:
    return spec.family in FAMILIES and leaf.path.endswith('norm')


def from_gguf(spec: ModelSpec, fields: Mapping[str, Any]) -> ModelSpec:
    """Return the spec, completed with the settings in a GGUF file.

    For settings that are not in the file, we assume the same values as llama.cpp.
    """

    def field(name: str, default: Any) -> Any:
        return fields.get(f'{spec.family}.{name}', default)

    defaults = _DEFAULTS[spec.family]
    period = field('attention.sliding_window_pattern', defaults['sliding_window_pattern'])
    theta, local_theta = _THETA[spec.family]
    query_width = spec.width // spec.num_heads if spec.num_layers == _LAYERS_27B[spec.family] else spec.head_dim
    return dataclasses.replace(
        of_family(spec),
        qk_norm=spec.family == 'gemma3',
        local=LocalLayers(
            int(field('attention.sliding_window', 4096)), int(period), float(field('rope.freq_base_swa', local_theta))
        ),
        rope_theta=float(field('rope.freq_base', theta)),
        rope_factor=float(field('rope.scaling.factor', 1.0)),
        query_width=query_width,
        attention_cap=field('attn_logit_softcapping', defaults['attn_logit_softcapping']),
        logit_cap=field('final_logit_softcapping', defaults['final_logit_softcapping']),
    )
