"""Configs of Hugging Face folders; every fault of a folder is refused by name."""

import dataclasses
import json

import numpy as np
import pytest
from conversion_models import LLAMA3_SCALING, TOKENS, random_params, tiny_spec, write_arrays, write_folder

from rlhi_jax.conversion.hf import hf_config, read_params, spec_from_hf, write_params
from rlhi_jax.conversion.safetensors_file import read_header
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.spec import RopeScaling


def test_both_spellings_of_rotary_settings():
    config = hf_config(tiny_spec(), tokens=TOKENS, dtype='float32')
    old = {**config, 'rope_theta': 500_000.0, 'rope_scaling': LLAMA3_SCALING}
    older = {**old, 'rope_scaling': {'type': 'llama3', **{k: v for k, v in LLAMA3_SCALING.items() if k != 'rope_type'}}}
    new = {key: value for key, value in config.items() if not key.startswith('rope')}
    new['rope_parameters'] = {'rope_theta': 500_000.0, **LLAMA3_SCALING}
    assert spec_from_hf(old) == spec_from_hf(older) == spec_from_hf(new)
    assert spec_from_hf(new).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 16)
    assert spec_from_hf(new).rope_theta == 500_000.0


def test_fields_that_old_configs_leave_out():
    config = hf_config(tiny_spec(num_kv_heads=4), tokens=TOKENS, dtype='float32')
    for field in ('num_key_value_heads', 'head_dim', 'rope_theta', 'rope_scaling', 'tie_word_embeddings', 'hidden_act'):
        del config[field]
    assert spec_from_hf(config) == tiny_spec(num_kv_heads=4)


@pytest.mark.parametrize('head', ['lm', 'reward'])
@pytest.mark.parametrize('family', ['llama', 'mistral', 'qwen2', 'qwen3'])
def test_configs_round_trip(family, head):
    spec = tiny_spec(
        family=family,
        head=head,
        qkv_bias=family == 'qwen2',
        qk_norm=family == 'qwen3',
        rope_theta=1e6,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        tied_embeddings=True,
    )
    config = json.loads(json.dumps(hf_config(spec, tokens=TOKENS, dtype='bfloat16')))
    assert spec_from_hf(config) == spec
    assert config['torch_dtype'] == 'bfloat16' and config['eos_token_id'] == [2, 3]
    assert config.get('num_labels') == (1 if head == 'reward' else None)


REFUSED_CONFIGS = [
    ({'model_type': 'phi3'}, "model_type is 'phi3'"),
    ({'architectures': ['LlamaModel']}, 'architectures is'),
    ({'architectures': None}, 'architectures is'),
    ({'architectures': ['LlamaForSequenceClassification'], 'num_labels': 2}, 'num_labels .* is 2'),
    ({'architectures': ['LlamaForSequenceClassification'], 'id2label': {'0': 'a', '1': 'b'}}, 'num_labels .* is 2'),
    ({'attention_bias': True}, 'attention_bias is True'),
    ({'mlp_bias': True}, 'mlp_bias is True'),
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'"),
    ({'pretraining_tp': 2}, 'pretraining_tp is 2'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor is 0.5'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config is'),
    ({'layer_types': ['full_attention', 'sliding_attention']}, "layer_types contains 'sliding_attention'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, "rope_scaling.rope_type is 'linear'"),
    ({'rope_scaling': None, 'rope_parameters': {'rope_type': 'yarn'}}, "rope_parameters.rope_type is 'yarn'"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'rope_scaling.low_freq_factor is None'),
    ({'rope_parameters': {'full_attention': {'rope_type': 'default'}}}, 'rope_parameters differs'),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'rope_parameters.partial_rotary_factor'),
    ({'hidden_size': None}, 'hidden_size is None'),
    ({'num_hidden_layers': 2.5}, 'num_hidden_layers is 2.5'),
    ({'model_type': 'mistral', 'sliding_window': 4096}, 'sliding_window is 4096'),
    ({'model_type': 'mistral'}, 'sliding_window is missing'),
    ({'model_type': 'qwen2', 'use_sliding_window': True}, 'use_sliding_window is True'),
    ({'model_type': 'qwen3', 'head_dim': None}, 'head_dim is None'),
    ({'model_type': 'qwen3', 'attention_bias': True}, 'attention_bias is True'),
]


@pytest.mark.parametrize(('changes', 'message'), REFUSED_CONFIGS, ids=[str(c) for c, _ in REFUSED_CONFIGS])
def test_configs_refused_by_name(changes, message):
    config = hf_config(tiny_spec(), tokens=TOKENS, dtype='float32')
    with pytest.raises(UserError, match=message):
        spec_from_hf({**config, **changes})


@pytest.mark.parametrize(
    ('changes', 'tokens', 'dtype', 'message'),
    [
        ({'qkv_bias': True}, TOKENS, 'float32', 'qkv_bias=True'),
        ({'family': 'qwen3'}, TOKENS, 'float32', 'qk_norm=False'),
        ({'head': 'reward'}, {**TOKENS, 'pad_token_id': None}, 'float32', 'pad_token_id is not set'),
        ({}, {**TOKENS, 'eos_token_id': [2, 96]}, 'float32', 'eos_token_id is 96'),
        ({}, TOKENS, 'float16', "dtype is 'float16'"),
    ],
)
def test_exports_refused_by_name(changes, tokens, dtype, message):
    with pytest.raises(UserError, match=message):
        hf_config(tiny_spec(**changes), tokens=tokens, dtype=dtype)


# ---- weights ----


def test_weights_refused_by_name(tmp_path):
    spec = tiny_spec()
    params = random_params(spec)
    write_folder(tmp_path, spec, params)
    file = tmp_path / 'model.safetensors'
    good = {name: tensor.read() for name, tensor in read_header(file).items()}
    q = 'model.layers.1.self_attn.q_proj.weight'

    def refused(arrays, message, as_spec=spec, dtype='F32'):
        write_arrays(file, arrays, dtype)
        with pytest.raises(UserError, match=message):
            read_params(tmp_path, as_spec)

    refused({name: array for name, array in good.items() if name != q}, f'no tensor {q}')
    refused({**good, 'model.layers.2.mlp.up_proj.weight': good[q]}, 'model.layers.2.mlp.up_proj.weight is not part of')
    refused({**good, q: good[q][:-1]}, rf'{q} has shape \[63, 64\]')
    refused(good, 'q_proj.bias', dataclasses.replace(spec, family='qwen2', qkv_bias=True))
    refused(good, 'no tensor score.weight or v_head.weight', dataclasses.replace(spec, head='reward'))
    reward = dataclasses.replace(spec, head='reward')
    two_rows = np.zeros((2, 64), np.float32)
    refused({**good, 'score.weight': two_rows}, r'score.weight has shape \[2, 64\]', reward)
    both = {'score.weight': two_rows[:1], 'v_head.weight': two_rows[:1]}
    refused({**good, **both}, 'v_head.weight is not part of', reward)
    tied = dataclasses.replace(spec, tied_embeddings=True)
    refused(good, 'lm_head.weight differs from the embedding', tied)

    # Tensors that may stay unread: rotation speeds, the copy of a tied embedding, a reward model's next-token head.
    extra = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(8)}
    write_arrays(file, {**good, **extra, 'lm_head.weight': good['model.embed_tokens.weight']})
    assert 'unembed' not in read_params(tmp_path, tied)
    write_arrays(file, {**good, **extra, 'score.weight': two_rows[:1]})
    assert read_params(tmp_path, reward)['score'].shape == (64, 1)

    data = bytearray(file.read_bytes())
    file.write_bytes(data[:-4])
    with pytest.raises(UserError, match='model.safetensors is damaged or cut short'):
        read_params(tmp_path, reward)
    file.write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(UserError, match='tensor model.embed_tokens.weight has type I32'):
        read_params(tmp_path, reward)
    file.unlink()
    with pytest.raises(UserError, match='model.safetensors does not exist'):
        read_params(tmp_path, reward)


@pytest.mark.parametrize('data', [b'', b'\x10\0\0\0\0\0\0\0', b'\x04\0\0\0\0\0\0\0{"a"', b'\x02\0\0\0\0\0\0\0[]'])
def test_damaged_headers_are_refused(tmp_path, data):
    (tmp_path / 'model.safetensors').write_bytes(data)
    with pytest.raises(UserError, match='model.safetensors is damaged'):
        read_header(tmp_path / 'model.safetensors')


def test_shards_refused_by_name(tmp_path):
    spec = tiny_spec()
    write_folder(tmp_path, spec, random_params(spec), max_shard_bytes=60_000)
    files = sorted(tmp_path.glob('*.safetensors'))
    index = tmp_path / 'model.safetensors.index.json'
    contents = json.loads(index.read_text())
    name, file = next(iter(contents['weight_map'].items()))
    index.write_text(json.dumps({'weight_map': {**contents['weight_map'], 'extra.weight': file}}))
    with pytest.raises(UserError, match=f'{file} does not contain tensor extra.weight'):
        read_params(tmp_path, spec)
    index.write_text(json.dumps(contents))
    original = files[1].read_bytes()
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(UserError, match=f'is in both {files[0].name} and {files[1].name}'):
        read_params(tmp_path, spec)
    files[1].write_bytes(original[: len(original) // 2])
    with pytest.raises(UserError, match=f'{files[1].name} is damaged or cut short'):
        read_params(tmp_path, spec)
    files[1].unlink()
    with pytest.raises(UserError, match=f'{files[1].name} does not exist'):
        read_params(tmp_path, spec)
    index.write_text('[]')
    with pytest.raises(UserError, match='has no weight_map'):
        read_params(tmp_path, spec)


def test_parameters_that_do_not_fit_the_spec_are_not_written(tmp_path):
    spec = tiny_spec()
    params = random_params(spec)
    with pytest.raises(UserError, match='parameter layers/k_bias is missing'):
        write_params(tmp_path, params, dataclasses.replace(spec, qkv_bias=True))
    with pytest.raises(UserError, match='parameter unembed is not part of'):
        write_params(tmp_path, params, dataclasses.replace(spec, tied_embeddings=True))
    with pytest.raises(UserError, match=r'parameter final_norm has shape \[3\]'):
        write_params(tmp_path, {**params, 'final_norm': np.ones(3)}, spec)
    with pytest.raises(UserError, match="--dtype is 'int8'"):
        write_params(tmp_path, params, spec, dtype='int8')
    assert not list(tmp_path.iterdir())
