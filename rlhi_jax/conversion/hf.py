"""Converts Hugging Face model folders (config.json and safetensors weights) to our parameters, and back.

We read configs with the older field names (`rope_theta`, `rope_scaling`) and with the new name in transformers 5
(`rope_parameters`). We write the older names, which transformers 4 and 5 and vLLM all read. We reject a config that
needs a feature we do not support; the error names the field.
"""

import dataclasses
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhi_jax.conversion import gemma
from rlhi_jax.conversion.fields import count, number, unsupported
from rlhi_jax.conversion.layout import Leaf, assemble, flattened, placements
from rlhi_jax.conversion.safetensors_file import DTYPES, StoredTensor, read_header, write_tensors
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.spec import ModelSpec, RopeScaling

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
EXPORT_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16'}

# The family in our spec, and the prefix of Hugging Face's class names, keyed by `model_type`.
_TYPES = {
    'llama': ('llama', 'Llama'),
    'mistral': ('mistral', 'Mistral'),
    'qwen2': ('qwen2', 'Qwen2'),
    'qwen3': ('qwen3', 'Qwen3'),
    'gemma2': ('gemma2', 'Gemma2'),
    'gemma3_text': ('gemma3', 'Gemma3'),
}
_HEADS = {'lm': 'ForCausalLM', 'reward': 'ForSequenceClassification'}

# Switches in Hugging Face configs, each with the only value that we support. A missing field counts as that value.
_FIXED = {
    'attention_bias': False,
    'mlp_bias': False,
    'pretraining_tp': 1,
    'partial_rotary_factor': 1.0,
    'use_sliding_window': False,
    'use_mrope': False,
    'use_bidirectional_attention': False,
    'quantization_config': None,
}


def spec_from_hf(config: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of the model that a config.json describes.

    `...ForSequenceClassification` in `architectures` means a reward model. If the config states the number of labels
    (`num_labels`, or the length of `id2label`), that number must be 1. If the config does not state the number, the
    head may have two rows (Hugging Face's default) or one row (some custom classes), so `read_params` checks the head's
    shape.

    Raises:
      UserError: a field is missing, or its value is not supported.
    """
    if config.get('model_type') not in tuple(_TYPES):  # unlike a dict, a tuple accepts unhashable values
        raise unsupported(f'model_type is {config.get("model_type")!r}', ', '.join(_TYPES))
    family, _ = _TYPES[config['model_type']]
    head = _head(config)
    activation = ('hidden_activation', gemma.ACTIVATION) if family in gemma.FAMILIES else ('hidden_act', 'silu')
    for field, value in (*_FIXED.items(), activation):
        if config.get(field, value) not in (value, None):
            raise unsupported(f'{field} is {config[field]!r}', repr(value))
    # In a Mistral config without this field, Hugging Face assumes a window of 4,096.
    if family == 'mistral' and config.get('sliding_window', 4096) is not None:
        window = config.get('sliding_window', 'missing, which means 4096')
        raise unsupported(f'sliding_window is {window}', 'null (Mistral v0.3 and later)')
    for kind in config.get('layer_types') or ():
        if kind != 'full_attention' and family not in gemma.FAMILIES:
            raise unsupported(f'layer_types contains {kind!r}', "'full_attention'")
    width, num_heads = count(config, 'hidden_size'), count(config, 'num_attention_heads')
    # Published configs leave out only the fields that have a default here; all other fields are required.
    no_kv_heads = family == 'llama' and config.get('num_key_value_heads') is None
    no_head_dim = family not in ('qwen3', *gemma.FAMILIES) and config.get('head_dim') is None
    spec = ModelSpec(
        family=family,
        vocab_size=count(config, 'vocab_size'),
        width=width,
        mlp_width=count(config, 'intermediate_size'),
        num_layers=count(config, 'num_hidden_layers'),
        num_heads=num_heads,
        num_kv_heads=num_heads if no_kv_heads else count(config, 'num_key_value_heads'),
        head_dim=width // num_heads if no_head_dim else count(config, 'head_dim'),
        max_positions=count(config, 'max_position_embeddings'),
        norm_eps=number(config, 'rms_norm_eps'),
        tied_embeddings=bool(config.get('tie_word_embeddings', family in gemma.FAMILIES)),
        qkv_bias=family == 'qwen2',
        qk_norm=family in ('qwen3', 'gemma3'),
        head=head,
    )
    if family in gemma.FAMILIES:
        return gemma.from_hf(spec, config)
    theta, scaling = _rope(config)
    return dataclasses.replace(spec, rope_theta=theta, rope_scaling=scaling)


def reads_cls_token(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json describes a reward model of Athene's class, which is read at the token CLS."""
    return config.get('architectures') == ['AtheneForSequenceClassification']


def _head(config: Mapping[str, Any]) -> str:
    """Return 'lm' or 'reward', depending on the model class named in the config."""
    named = config.get('architectures') or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise unsupported(f'architectures is {json.dumps(named)[:80]}', 'a list of class names')
    heads = [head for head, suffix in _HEADS.items() if len(named) == 1 and named[0].endswith(suffix)]
    if not heads:
        raise unsupported(f'architectures is {named}', f'a single class named ...{" or ...".join(_HEADS.values())}')
    if heads == ['reward']:
        labels = config.get('num_labels')
        if labels is None and config.get('id2label') is not None:
            labels = len(config['id2label'])
        if labels not in (None, 1):
            raise unsupported(f'num_labels (or the length of id2label) is {labels}', '1, as in a reward model')
    return heads[0]


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return the base of the rotary embedding, and its scaling or None."""
    name = 'rope_scaling' if config.get('rope_scaling') else 'rope_parameters'
    rope = config.get(name) or {}
    if not isinstance(rope, Mapping):
        raise UserError(f'config.json: {name} is {json.dumps(rope)[:80]}: set it to a JSON object')
    stated = rope.get('rope_theta') or config.get('rope_theta') or 10_000.0
    theta = number(dict(rope_theta=stated), 'rope_theta')
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise unsupported(f'{name} differs between layer types', 'one rotation for all layers')
    if (share := rope.get('partial_rotary_factor', 1.0)) != 1.0:
        raise unsupported(f'{name}.partial_rotary_factor is {share!r}', '1.0')
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind == 'default':
        return theta, None
    if kind != 'llama3':
        raise unsupported(f'{name}.rope_type is {kind!r}', "'default' and 'llama3'")
    scaling = RopeScaling(
        factor=number(rope, 'factor', name),
        low_freq_factor=number(rope, 'low_freq_factor', name),
        high_freq_factor=number(rope, 'high_freq_factor', name),
        original_max_positions=count(rope, 'original_max_position_embeddings', name),
    )
    return theta, scaling


def hf_config(spec: ModelSpec, *, tokens: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the contents of config.json for an exported model.

    Args:
      spec: the model.
      tokens: `bos_token_id`, `eos_token_id` (one id or a list of them) and `pad_token_id`, each possibly None.
      dtype: the type of the exported weights, 'float32' or 'bfloat16'.

    Raises:
      UserError: no stock Hugging Face class implements this model, a token is outside the vocabulary, or a reward
        model has no pad token (which Hugging Face uses to find the end of each reply in a batch).
    """
    ids = {name: tokens.get(name) for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
    _check_export(spec, ids, dtype)
    model_type, name = next((kind, name) for kind, (family, name) in _TYPES.items() if family == spec.family)
    if (spec.family, spec.head) == ('gemma3', 'reward'):
        name = 'Gemma3Text'  # Gemma3ForSequenceClassification also reads images
    config = {
        'architectures': [name + _HEADS[spec.head]],
        'model_type': model_type,
        'vocab_size': spec.vocab_size,
        'hidden_size': spec.width,
        'intermediate_size': spec.mlp_width,
        'num_hidden_layers': spec.num_layers,
        'num_attention_heads': spec.num_heads,
        'num_key_value_heads': spec.num_kv_heads,
        'head_dim': spec.head_dim,
        'hidden_act': 'silu',
        'max_position_embeddings': spec.max_positions,
        'rms_norm_eps': spec.norm_eps,
        'rope_theta': spec.rope_theta,
        'rope_scaling': _rope_scaling(spec.rope_scaling),
        'tie_word_embeddings': spec.tied_embeddings,
        'attention_dropout': 0.0,
        'initializer_range': 0.02,
        'use_cache': True,
        'torch_dtype': dtype,
        **ids,
    }
    if spec.family in gemma.FAMILIES:
        del config['hidden_act']
        config.update(gemma.to_hf(spec))
    elif spec.family == 'llama':
        config.update(attention_bias=False, mlp_bias=False)
    elif spec.family == 'mistral':
        config.update(sliding_window=None)
    else:
        config.update(use_sliding_window=False, sliding_window=None, max_window_layers=spec.num_layers)
    if spec.family == 'qwen3':
        config.update(attention_bias=False)
    if spec.head == 'reward':
        # We set 'regression' because servers otherwise apply a sigmoid to a single label.
        config.update(num_labels=1, id2label={'0': 'LABEL_0'}, label2id={'LABEL_0': 0}, problem_type='regression')
    return config


def _check_export(spec: ModelSpec, ids: Mapping[str, Any], dtype: str) -> None:
    if (spec.qkv_bias, spec.qk_norm) != (spec.family == 'qwen2', spec.family in ('qwen3', 'gemma3')):
        raise UserError(
            f'no Hugging Face class implements a {spec.family} model with qkv_bias={spec.qkv_bias} and '
            f'qk_norm={spec.qk_norm}: export a different --checkpoint'
        )
    if dtype not in EXPORT_DTYPES:
        raise UserError(f'--dtype is {dtype!r}: choose one of {", ".join(EXPORT_DTYPES)}')
    for name, value in ids.items():
        for token in value if isinstance(value, list | tuple) else [value]:
            if token is not None and not 0 <= token < spec.vocab_size:
                raise UserError(
                    f'{name} is {token}, outside the vocabulary of {spec.vocab_size} tokens: correct it under "tokens" '
                    'in the model.json of --checkpoint'
                )
    if spec.head == 'reward' and ids['pad_token_id'] is None:
        raise UserError(
            'pad_token_id is not set, but a reward model needs it: set it under "tokens" in the model.json of '
            '--checkpoint'
        )


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        'rope_type': 'llama3',
        'factor': scaling.factor,
        'low_freq_factor': scaling.low_freq_factor,
        'high_freq_factor': scaling.high_freq_factor,
        'original_max_position_embeddings': scaling.original_max_positions,
    }


def read_params(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Read a Hugging Face folder's weights as our parameter tree of float32 numpy arrays (layers stacked on axis 0).

    Args:
      folder: contains `model.safetensors`, or `model.safetensors.index.json` and its shards, in float32, float16 or
        bfloat16.
      spec: the model that the folder's config.json describes (see `spec_from_hf`).

    Raises:
      UserError: a file is missing or damaged, or a tensor is missing, is unknown, or has the wrong shape or type.
    """
    folder = Path(folder)
    tensors = _stored_tensors(folder)

    def ignorable(name: str) -> bool:
        # The config fixes the rotation speeds. A reward model has no next-token head. A tied head is checked below.
        return name.endswith('rotary_emb.inv_freq') or (name == 'lm_head.weight' and not spec.has_unembed)

    params = assemble(
        spec,
        'hf',
        {name: tensor.shape for name, tensor in tensors.items()},
        lambda name, leaf: [gemma.from_stored(tensors[name].read(), leaf, spec)],
        ignorable=ignorable,
        source=str(folder),
    )
    copied = spec.head == 'lm' and spec.tied_embeddings and 'lm_head.weight' in tensors
    if copied and not np.array_equal(tensors['lm_head.weight'].read(), params['embed']):
        raise UserError(
            f'{folder}: tensor lm_head.weight differs from the embedding, but tie_word_embeddings is true: set '
            'tie_word_embeddings to false in config.json'
        )
    return params


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors in all weight files of a folder, keyed by name."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return read_header(folder / SINGLE)
    index = read_json(folder / INDEX, 'download the model again')
    weight_map = index.get('weight_map') if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise UserError(f'{folder / INDEX} has no weight_map: download the model again')
    tensors: dict[str, StoredTensor] = {}
    for file in sorted({str(file) for file in weight_map.values()}):
        if Path(file).name != file or not _is_file(folder / file):
            raise UserError(
                f'{folder / INDEX} lists {file!r}, which is not a file in the folder: download the model again'
            )
        for name, tensor in read_header(folder / file).items():
            if name in tensors:
                raise UserError(
                    f'{folder}: tensor {name} is in both {tensors[name].file.name} and {file}: download the model again'
                )
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise UserError(f'{folder / file} does not contain tensor {name}, which {INDEX} lists: download it again')
    return tensors


def _is_file(path: Path) -> bool:
    """Return whether a path is a regular file or does not exist; a pipe, for example, is not a regular file."""
    return not path.exists() or stat.S_ISREG(path.stat().st_mode)


def write_params(
    folder: Path,
    params: Mapping[str, Any],
    spec: ModelSpec,
    *,
    dtype: str = 'float32',
    max_shard_bytes: float = 5e9,
) -> None:
    """Write our parameters as the safetensors files of a Hugging Face folder.

    Writes `model.safetensors` if the parameters fit in one file, otherwise shards and `model.safetensors.index.json`.
    Tensors are sliced, cast and written one by one.

    Args:
      folder: an existing folder without weights.
      params: our parameter tree, with numpy or jax arrays.
      spec: the model.
      dtype: the type of the written weights, 'float32' or 'bfloat16'.
      max_shard_bytes: the maximum size of a file; a larger tensor gets its own file.

    Raises:
      UserError: the parameters do not match the spec, or the dtype is unknown.
    """
    if dtype not in EXPORT_DTYPES:
        raise UserError(f'--dtype is {dtype!r}: choose one of {", ".join(EXPORT_DTYPES)}')
    flat, stored = flattened(params, spec), EXPORT_DTYPES[dtype]

    def array(leaf: Leaf, layer: int | None) -> Callable[[], np.ndarray]:
        def slice_of_leaf() -> np.ndarray:
            whole = flat[leaf.path]
            array = np.asarray(whole if layer is None else whole[layer])
            return gemma.to_stored(leaf.to_stored(array, spec), leaf, spec)

        return slice_of_leaf

    shards, sizes = [[]], [0]
    for leaf, layer in placements(spec):
        shape = leaf.stored_shape(spec)
        size = int(np.prod(shape)) * DTYPES[stored].itemsize
        if shards[-1] and sizes[-1] + size > max_shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append((leaf.hf[0].format(layer), shape, array(leaf, layer)))
        sizes[-1] += size
    names = [f'model-{i:05d}-of-{len(shards):05d}.safetensors' for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for name, tensors in zip(names, shards, strict=True):
        write_tensors(Path(folder) / name, tensors, stored, {'format': 'pt'})
    if len(shards) > 1:
        weight_map = {tensor[0]: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        write_json(Path(folder) / INDEX, {'metadata': {'total_size': sum(sizes)}, 'weight_map': weight_map})
