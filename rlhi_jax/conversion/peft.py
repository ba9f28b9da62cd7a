"""Converts our adapters to `peft` folders (adapter_config.json and adapter_model.safetensors), and back.

For each adapted matrix of each layer, PEFT stores lora_A [rank, inputs] and lora_B [outputs, rank]. These are our A and
B, transposed and with the axes of heads merged.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhi_jax.conversion.hf import EXPORT_DTYPES
from rlhi_jax.conversion.layout import LEAVES
from rlhi_jax.conversion.safetensors_file import read_header, write_tensors
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.models.lora import MATRICES, Lora
from rlhi_jax.models.spec import ModelSpec

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'

_PREFIX = 'base_model.model.'
_SCORE = f'{_PREFIX}score.weight'
_TASKS = {'lm': 'CAUSAL_LM', 'reward': 'SEQ_CLS'}

# Fields of adapter_config.json, each with the only value that we support. A missing field counts as that value.
_FIXED = {
    'peft_type': 'LORA',
    'bias': 'none',
    'fan_in_fan_out': False,
    'use_dora': False,
    'lora_bias': False,
    'rank_pattern': {},
    'alpha_pattern': {},
    'layers_to_transform': None,
    'layer_replication': None,
    'trainable_token_indices': None,
    'target_parameters': None,
}


def write_adapters(folder: Path, model: ModelFolder, trained: dict[str, Any], *, dtype: str) -> None:
    """Write a model's adapters, with its reward head if it has one, to a `peft` folder.

    Args:
      folder: an existing folder.
      model: a model with adapters.
      trained: the model's adapters and, if it has one, its reward head, as `load_trained` returns them.
      dtype: the type of the written weights, 'float32' or 'bfloat16'.
    """
    lora, spec = model.lora, model.spec
    # `peft` can download a base model from the hub by this name. For any other base model, the name is only a
    # description, so users must pass the base model to `peft` themselves.
    name, _, revision = model.base.source.removeprefix('hf://').partition('@')
    config = dict(
        peft_type='LORA',
        task_type=_TASKS[spec.head],
        base_model_name_or_path=name,
        revision=revision or None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=[_module(name) for name in lora.targets],
        modules_to_save=['score'] if spec.head == 'reward' else None,
        inference_mode=True,
        bias='none',
        fan_in_fan_out=False,
    )
    write_json(folder / CONFIG, config)
    layers = trained['adapters']['layers']

    def array(part: _Part) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(layers[part.name][part.layer]).reshape(part.stored_shape[::-1]).T

    tensors = [(part.tensor, part.stored_shape, array(part)) for part in _parts(spec, lora)]
    if spec.head == 'reward':
        tensors.append((_SCORE, (1, spec.width), lambda: np.asarray(trained['score']).T))
    write_tensors(folder / WEIGHTS, tensors, EXPORT_DTYPES[dtype], {'format': 'pt'})


def read_adapters(folder: Path, base: ModelSpec) -> tuple[ModelSpec, Lora, dict[str, Any]]:
    """Return the spec, the adapters' settings and the trained parameters of a `peft` folder for a base model.

    If the folder contains a reward head, the spec is `base` with a reward head; otherwise, the spec is `base` itself.

    Raises:
      UserError: the folder is missing or damaged, uses a feature that we do not support, or does not fit the base.
    """
    config = read_json(folder / CONFIG, 'set --source to peft:DIR, where DIR is a folder made by `peft`', fields=())
    for field, value in _FIXED.items():
        if (config.get(field) or value) != value:
            raise UserError(
                f'{folder / CONFIG}: {field} is {config[field]!r}, but we support only {value!r}: merge the adapter '
                'into its base with `peft`, and import the whole model'
            )
    rank, alpha = int(_number(folder, config, 'r')), float(_number(folder, config, 'lora_alpha'))
    if config.get('use_rslora'):  # arXiv 2312.03732
        alpha *= math.sqrt(rank)
    stored = read_header(folder / WEIGHTS)
    spec = dataclasses.replace(base, head='reward') if _SCORE in stored else base
    targets = tuple(name for name in MATRICES if any(f'.{_module(name)}.lora_A.' in tensor for tensor in stored))
    lora = Lora(rank, alpha, targets)
    shapes = {part.tensor: part.stored_shape for part in _parts(spec, lora)}
    shapes |= {_SCORE: (1, spec.width)} if spec.head == 'reward' else {}
    if not targets or shapes.keys() != stored.keys():
        wrong = min(shapes.keys() ^ stored.keys(), default='lora_A')
        fault = 'contains' if wrong in stored else 'does not contain'
        raise UserError(
            f'{folder / WEIGHTS} {fault} the tensor {wrong}, so the adapter does not fit --base: use the model that '
            'the adapter was trained on'
        )
    for tensor, shape in shapes.items():
        if stored[tensor].shape != shape:
            raise UserError(
                f'{folder / WEIGHTS}: the tensor {tensor} has shape {list(stored[tensor].shape)}, but --base needs '
                f'shape {list(shape)}: use the model that the adapter was trained on'
            )
    layers: dict[str, np.ndarray] = {}
    for part in _parts(spec, lora):
        whole = layers.setdefault(part.name, np.empty((spec.num_layers, *part.shape), np.float32))
        whole[part.layer] = stored[part.tensor].read().T.reshape(part.shape)
    trained: dict[str, Any] = {'adapters': {'layers': layers}}
    if spec.head == 'reward':
        trained['score'] = stored[_SCORE].read().astype(np.float32).T
    if not all(np.isfinite(values).all() for values in jax.tree.leaves(trained)):
        raise UserError(f'{folder / WEIGHTS} contains NaN or infinite numbers: copy the folder again')
    return spec, lora, trained


class _Part(NamedTuple):
    """A or B of one matrix in one layer: its name and shape in our tree, and its tensor's name and shape in a file."""

    name: str
    layer: int
    shape: tuple[int, ...]
    tensor: str
    stored_shape: tuple[int, int]


def _parts(spec: ModelSpec, lora: Lora) -> Iterator[_Part]:
    for name in lora.targets:
        leaf = next(leaf for leaf in LEAVES if leaf.path == f'layers/{name}')
        sizes = dict(zip(leaf.axes, leaf.shape(spec)[1:], strict=True))
        outputs, inputs = (tuple(sizes[axis] for axis in group) for group in leaf.stored.split())
        for layer in range(spec.num_layers):
            tensor = _PREFIX + leaf.hf[0].format(layer).removesuffix('.weight')
            a, b = (*inputs, lora.rank), (lora.rank, *outputs)
            yield _Part(f'{name}_a', layer, a, f'{tensor}.lora_A.weight', (lora.rank, math.prod(inputs)))
            yield _Part(f'{name}_b', layer, b, f'{tensor}.lora_B.weight', (math.prod(outputs), lora.rank))


def _module(name: str) -> str:
    """Return the name that Hugging Face gives to one of our matrices, such as q_proj."""
    return next(leaf.hf[0].split('.')[-2] for leaf in LEAVES if leaf.path == f'layers/{name}')


def _number(folder: Path, config: dict[str, Any], field: str) -> float:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f'{folder / CONFIG}: {field} is {value!r}: set it to a number above 0')
    return value
