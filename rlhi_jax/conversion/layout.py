"""The table that maps our parameters to the tensors in Hugging Face and GGUF files, and back.

Dimension key: V vocabulary, D width, F mlp width, N query heads, K key-value heads, H head width, L layers, S scores.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rlhi_jax.io.errors import UserError
from rlhi_jax.models.spec import ModelSpec

_REMEDY = 'download the model again'


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters and the tensors that store it in files.

    Attributes:
      path: the parameter's path in our tree.
      axes: the parameter's axes in our tree, without the axis of stacked layers.
      stored: the axes in the file, with a space between dimensions: 'NH D' is a matrix [N * H, D].
      hf: possible names in Hugging Face files, with `{}` for the layer; we read any of them and write the first.
      gguf: possible names in GGUF files, with `{}` for the layer.
      when: returns whether a model with a given spec has this parameter.
    """

    path: str
    axes: str
    stored: str
    hf: tuple[str, ...]
    gguf: tuple[str, ...] = ()
    when: Callable[[ModelSpec], bool] = lambda spec: True

    @property
    def stacked(self) -> bool:
        return self.path.startswith('layers/')

    def shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return the shape of the parameter in our tree, including the axis of stacked layers."""
        sizes = _sizes(spec)
        return (spec.num_layers,) * self.stacked + tuple(sizes[axis] for axis in self.axes)

    def stored_shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return the shape of the tensor in the file, where each layer has a separate tensor."""
        sizes = _sizes(spec)
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.stored.split())

    def to_stored(self, array: np.ndarray, spec: ModelSpec) -> np.ndarray:
        """Return one layer of our parameter as a view with the file's axes. Writing to the view sets the parameter."""
        split = self.stored.replace(' ', '')
        view = array.transpose([self.axes.index(axis) for axis in split])
        return view.reshape(self.stored_shape(spec), copy=False)


def _layer(path: str, axes: str, stored: str, hf: str, gguf: str, when=lambda spec: True) -> Leaf:
    return Leaf(f'layers/{path}', axes, stored, (f'model.layers.{{}}.{hf}',), (f'blk.{{}}.{gguf}',), when)


def _biased(spec: ModelSpec) -> bool:
    return spec.qkv_bias


def _normed(spec: ModelSpec) -> bool:
    return spec.qk_norm


def _with_post_norms(spec: ModelSpec) -> bool:
    return spec.post_norms


LEAVES = (
    Leaf('embed', 'VD', 'V D', ('model.embed_tokens.weight',), ('token_embd.weight',)),
    _layer('attention_norm', 'D', 'D', 'input_layernorm.weight', 'attn_norm.weight'),
    _layer('q', 'DNH', 'NH D', 'self_attn.q_proj.weight', 'attn_q.weight'),
    _layer('k', 'DKH', 'KH D', 'self_attn.k_proj.weight', 'attn_k.weight'),
    _layer('v', 'DKH', 'KH D', 'self_attn.v_proj.weight', 'attn_v.weight'),
    _layer('q_bias', 'NH', 'NH', 'self_attn.q_proj.bias', 'attn_q.bias', _biased),
    _layer('k_bias', 'KH', 'KH', 'self_attn.k_proj.bias', 'attn_k.bias', _biased),
    _layer('v_bias', 'KH', 'KH', 'self_attn.v_proj.bias', 'attn_v.bias', _biased),
    _layer('q_norm', 'H', 'H', 'self_attn.q_norm.weight', 'attn_q_norm.weight', _normed),
    _layer('k_norm', 'H', 'H', 'self_attn.k_norm.weight', 'attn_k_norm.weight', _normed),
    _layer('o', 'NHD', 'D NH', 'self_attn.o_proj.weight', 'attn_output.weight'),
    _layer(
        'post_attention_norm',
        'D',
        'D',
        'post_attention_layernorm.weight',
        'post_attention_norm.weight',
        _with_post_norms,
    ),
    # In models without a norm after attention, Hugging Face's `post_attention_layernorm` is the norm before the MLP.
    _layer('mlp_norm', 'D', 'D', 'pre_feedforward_layernorm.weight', 'ffn_norm.weight', _with_post_norms),
    _layer(
        'mlp_norm', 'D', 'D', 'post_attention_layernorm.weight', 'ffn_norm.weight', lambda spec: not spec.post_norms
    ),
    _layer('gate', 'DF', 'F D', 'mlp.gate_proj.weight', 'ffn_gate.weight'),
    _layer('up', 'DF', 'F D', 'mlp.up_proj.weight', 'ffn_up.weight'),
    _layer('down', 'FD', 'D F', 'mlp.down_proj.weight', 'ffn_down.weight'),
    _layer('post_mlp_norm', 'D', 'D', 'post_feedforward_layernorm.weight', 'post_ffw_norm.weight', _with_post_norms),
    Leaf('final_norm', 'D', 'D', ('model.norm.weight',), ('output_norm.weight',)),
    Leaf('unembed', 'VD', 'V D', ('lm_head.weight',), ('output.weight',), lambda spec: spec.has_unembed),
    # Stock sequence classifiers call their head `score`; some published reward models (Athene) call it `v_head`.
    Leaf('score', 'DS', 'S D', ('score.weight', 'v_head.weight'), when=lambda spec: spec.head == 'reward'),
)


def _sizes(spec: ModelSpec) -> dict[str, int]:
    return {
        'V': spec.vocab_size,
        'D': spec.width,
        'F': spec.mlp_width,
        'N': spec.num_heads,
        'K': spec.num_kv_heads,
        'H': spec.head_dim,
        'S': 1,
    }


def placements(spec: ModelSpec) -> Iterator[tuple[Leaf, int | None]]:
    """Yield every tensor of a model as (leaf, layer), in the order in which the model uses them.

    `layer` is None for a tensor that does not belong to a layer.
    """
    leaves = [leaf for leaf in LEAVES if leaf.when(spec)]
    stacked = [leaf for leaf in leaves if leaf.stacked]
    first = leaves.index(stacked[0])
    yield from ((leaf, None) for leaf in leaves[:first])
    yield from ((leaf, layer) for layer in range(spec.num_layers) for leaf in stacked)
    yield from ((leaf, None) for leaf in leaves[first:] if not leaf.stacked)


def assemble(
    spec: ModelSpec,
    naming: str,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, Leaf], Iterable[np.ndarray]],
    *,
    ignorable: Callable[[str], bool],
    source: str,
) -> dict[str, Any]:
    """Build our parameters as float32 arrays, reading a part of one tensor at a time to save memory.

    Args:
      spec: the model.
      naming: the kind of tensor names in the source, 'hf' or 'gguf'.
      shapes: the shape of every tensor in the source, keyed by name.
      read: returns the tensor with a given name, in its stored shape and any float type. The tensor is split along its
        first axis into consecutive parts.
      ignorable: returns whether a tensor with a given name may be ignored if the model does not use it.
      source: the name of the file or folder, for error messages.

    Raises:
      UserError: a tensor is missing, is unknown, has the wrong shape or contains a non-finite number. Names and shapes
        are checked before any tensor is read.
    """
    plan, taken = [], set()
    for leaf, layer in placements(spec):
        names = [name.format(layer) for name in getattr(leaf, naming)]
        name = next((name for name in names if name in shapes), None)
        if name is None:
            raise UserError(f'{source} has no tensor {" or ".join(names)}: {_REMEDY}')
        if tuple(shapes[name]) != leaf.stored_shape(spec):
            shape, expected = list(shapes[name]), list(leaf.stored_shape(spec))
            raise UserError(f'{source}: tensor {name} has shape {shape}, but the model needs {expected}: {_REMEDY}')
        plan.append((leaf, layer, name))
        taken.add(name)
    for name in shapes:
        if name not in taken and not ignorable(name):
            kind = f'{spec.family} {spec.head} model'
            raise UserError(f'{source}: tensor {name} is not part of a {kind}: {_REMEDY}')
    params = {}
    for leaf, layer, name in plan:
        if leaf.path not in params:
            params[leaf.path] = np.empty(leaf.shape(spec), np.float32)
        target = params[leaf.path]
        stored, row = leaf.to_stored(target if layer is None else target[layer], spec), 0
        for part in read(name, leaf):
            if not np.isfinite(part).all():
                raise UserError(f'{source}: tensor {name} contains NaN or infinite numbers: download the model again')
            stored[row : row + len(part)] = part
            row += len(part)
    return _nested(params)


def flattened(params: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return our parameters keyed by path, after checking them against `LEAVES`.

    Raises:
      UserError: a parameter is missing or unknown, or has the wrong shape.
    """
    flat = {name: value for name, value in params.items() if name != 'layers'}
    flat.update({f'layers/{name}': value for name, value in params.get('layers', {}).items()})
    expected = {leaf.path: leaf.shape(spec) for leaf in LEAVES if leaf.when(spec)}
    for path in sorted(expected.keys() ^ flat.keys()):
        fault = 'is missing from' if path in expected else 'is not part of'
        raise UserError(
            f'parameter {path} {fault} a {spec.family} model with the {spec.head!r} head: import or train the model '
            'again'
        )
    for path, shape in expected.items():
        if tuple(flat[path].shape) != shape:
            raise UserError(
                f'parameter {path} has shape {list(flat[path].shape)}, but the model needs {list(shape)}: import or '
                'train the model again'
            )
    return flat


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    params: dict[str, Any] = {'layers': {}}
    for path, value in flat.items():
        node = params['layers'] if path.startswith('layers/') else params
        node[path.removeprefix('layers/')] = value
    return params
