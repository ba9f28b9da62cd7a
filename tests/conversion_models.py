"""Shared by the conversion tests: tiny models with random parameters, and our decoder on plain causal rows."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from rlhi_jax.conversion.hf import hf_config, read_params, spec_from_hf, write_params
from rlhi_jax.conversion.layout import LEAVES
from rlhi_jax.conversion.safetensors_file import write_tensors
from rlhi_jax.models.decoder import Decoder, output_head
from rlhi_jax.models.spec import ModelSpec

TOKENS = {'bos_token_id': 1, 'eos_token_id': [2, 3], 'pad_token_id': 0}
LLAMA3_SCALING = dict(
    rope_type='llama3',
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,  # short enough for the scaling to change the logits of 24 tokens
)
TEXT_IDS = np.random.default_rng(0).integers(4, 96, (2, 24))


def our_output(params, spec, token_ids=TEXT_IDS):
    """Logits [B, T, V] of plain causal rows, or the score of each row at its last token [B, 1]."""
    batch, length = token_ids.shape
    position_BT = jnp.tile(jnp.arange(length), (batch, 1))
    hidden_BTD = Decoder(spec).apply({'params': params}, jnp.asarray(token_ids), position_BT, length - position_BT)
    if spec.head == 'reward':
        return np.asarray(hidden_BTD[:, -1] @ params['score'])
    return np.asarray(output_head(spec, params).logits(hidden_BTD))


def read_folder(folder):
    spec = spec_from_hf(json.loads((folder / 'config.json').read_text()))
    return spec, read_params(folder, spec)


def write_folder(folder, spec, params, dtype='float32', **options):
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(hf_config(spec, tokens=TOKENS, dtype=dtype)))
    write_params(folder, params, spec, dtype=dtype, **options)


def assert_same(params, other):
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    others = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(other)}
    assert flat.keys() == others.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(leaf, others[path], err_msg=path)


def random_params(spec, seed=0):
    rng = np.random.default_rng(seed)
    params = {'layers': {}}
    for leaf in LEAVES:
        if leaf.when(spec):
            node = params['layers'] if leaf.stacked else params
            node[leaf.path.removeprefix('layers/')] = rng.normal(0, 0.15, leaf.shape(spec)).astype(np.float32)
    return params


def tiny_spec(**changes):
    fields = dict(
        family='llama',
        vocab_size=96,
        width=64,
        mlp_width=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=128,
    )
    return ModelSpec(**{**fields, **changes})


def write_arrays(file, arrays, dtype='F32'):
    write_tensors(file, [(name, array.shape, lambda a=array: a) for name, array in arrays.items()], dtype, {})
