"""Hugging Face folders against transformers, in both directions."""

import copy
import json
import os
import tracemalloc

os.environ['HF_HUB_OFFLINE'] = '1'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from conversion_models import (  # noqa: E402
    LLAMA3_SCALING,
    TEXT_IDS,
    assert_same,
    our_output,
    random_params,
    read_folder,
    tiny_spec,
    write_arrays,
    write_folder,
)

from rlhi_jax.conversion.safetensors_file import read_header, write_tensors  # noqa: E402

# Tiny models of each family, as arguments of transformers' config classes.
SMALL = dict(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2, pad_token_id=0)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
MODELS = {
    'llama2': ('llama', dict(num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-5)),
    'llama3': ('llama', dict(HEADS, rope_theta=500.0, rope_scaling=LLAMA3_SCALING, max_position_embeddings=128)),
    'smollm2': ('llama', dict(HEADS, tie_word_embeddings=True, rope_theta=100_000.0)),
    'mistral': ('mistral', dict(HEADS, sliding_window=None, head_dim=16)),
    'qwen2': ('qwen2', dict(HEADS, tie_word_embeddings=True, rope_theta=1e6)),
    'qwen3': ('qwen3', dict(HEADS, head_dim=16)),
    # Windows shorter than the 24 tokens, and caps that matter; in a layer of each kind, other rotations.
    'gemma2': (
        'gemma2',
        dict(HEADS, head_dim=16, sliding_window=7, attn_logit_softcapping=2.0, final_logit_softcapping=1.5)
        | dict(query_pre_attn_scalar=24, tie_word_embeddings=True),
    ),
    'gemma3': (
        'gemma3_text',
        dict(HEADS, head_dim=16, sliding_window=7, layer_types=['sliding_attention', 'full_attention'])
        | dict(query_pre_attn_scalar=24, rope_theta=1e6, rope_local_base_freq=500.0)
        | dict(rope_scaling={'rope_type': 'linear', 'factor': 8.0}, tie_word_embeddings=True),
    ),
    'gemma3_of_local_layers': (
        'gemma3_text',
        dict(HEADS, head_dim=16, sliding_window=1, final_logit_softcapping=3.0, query_pre_attn_scalar=16),
    ),
}


@pytest.fixture(scope='module')
def transformers():
    pytest.importorskip('torch')
    library = pytest.importorskip('transformers')
    library.logging.disable_progress_bar()
    return library


def reference_model(transformers, name, head='CausalLM'):
    """A model by transformers with random parameters, including norms and biases."""
    import torch

    family, fields = MODELS[name]
    config = transformers.AutoConfig.for_model(family, **SMALL, **copy.deepcopy(fields))  # which it alters
    if head == 'SequenceClassification':
        config.num_labels = 1
    model = getattr(transformers, f'AutoModelFor{head}').from_config(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.15 + ('norm' in key))
    return model


def reference_output(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(TEXT_IDS)).logits.float().numpy()


def load_reference(transformers, folder, head='CausalLM', **options):
    """One of our folders as transformers loads it; fails on a missing, unexpected or misshapen tensor."""
    load = getattr(transformers, f'AutoModelFor{head}').from_pretrained
    model, loading = load(folder, output_loading_info=True, **options)
    assert not any(loading.values()), loading
    return model.eval()


# ---- language models ----


@pytest.mark.parametrize('name', MODELS)
def test_language_models_both_ways(transformers, tmp_path, name):
    model = reference_model(transformers, name)
    expected = reference_output(model)
    model.save_pretrained(tmp_path / 'theirs')
    spec, params = read_folder(tmp_path / 'theirs')
    assert (spec.family, spec.head) == (MODELS[name][0].removesuffix('_text'), 'lm')
    np.testing.assert_allclose(our_output(params, spec), expected, atol=1e-4)

    write_folder(tmp_path / 'ours', spec, params)
    again, params_again = read_folder(tmp_path / 'ours')
    assert again == spec
    assert_same(params_again, params)
    np.testing.assert_array_equal(reference_output(load_reference(transformers, tmp_path / 'ours')), expected)

    model.save_pretrained(tmp_path / 'theirs_sharded', max_shard_size='20KB')
    assert len(list((tmp_path / 'theirs_sharded').glob('*.safetensors'))) > 2
    assert_same(read_folder(tmp_path / 'theirs_sharded')[1], params)


def test_our_shards(transformers, tmp_path):
    model = reference_model(transformers, 'qwen3')
    model.save_pretrained(tmp_path / 'theirs')
    spec, params = read_folder(tmp_path / 'theirs')
    write_folder(tmp_path / 'ours', spec, params, max_shard_bytes=20_000)
    files = sorted((tmp_path / 'ours').glob('*.safetensors'))
    assert len(files) > 2 and files[0].name == f'model-00001-of-{len(files):05d}.safetensors'
    # A tensor above the limit lies alone; the others keep to it.
    assert all(file.stat().st_size < 21_000 for file in files if len(read_header(file)) > 1)
    index = json.loads((tmp_path / 'ours/model.safetensors.index.json').read_text())
    assert index['metadata']['total_size'] == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert_same(read_folder(tmp_path / 'ours')[1], params)
    loaded = load_reference(transformers, tmp_path / 'ours')
    np.testing.assert_array_equal(reference_output(loaded), reference_output(model))


def test_bfloat16_export_and_half_precision_import(transformers, tmp_path):
    import torch

    model = reference_model(transformers, 'smollm2')
    model.save_pretrained(tmp_path / 'theirs')
    spec, params = read_folder(tmp_path / 'theirs')
    write_folder(tmp_path / 'ours', spec, params, dtype='bfloat16')
    loaded = load_reference(transformers, tmp_path / 'ours', dtype='auto')
    assert loaded.dtype == torch.bfloat16
    for key, value in model.to(torch.bfloat16).state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_same(read_folder(tmp_path / 'ours')[1], rounded)

    model = reference_model(transformers, 'smollm2').half()
    model.save_pretrained(tmp_path / 'half')
    halved = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params)
    assert_same(read_folder(tmp_path / 'half')[1], halved)


def test_jax_arrays_are_written_like_numpy(tmp_path):
    spec = tiny_spec(qkv_bias=True, family='qwen2')
    params = random_params(spec)
    write_folder(tmp_path / 'ours', spec, jax.tree.map(jnp.asarray, params))
    assert_same(read_folder(tmp_path / 'ours')[1], params)


def test_safetensors_library_reads_our_files(tmp_path):
    library = pytest.importorskip('safetensors.numpy')
    rows = np.arange(15, dtype=np.float32).reshape(3, 5)
    tensors = [('a', (3, 5), lambda: rows), ('b', (2,), lambda: np.ones(2))]
    write_tensors(tmp_path / 'x.safetensors', tensors, 'F32', {'format': 'pt'})
    loaded = library.load_file(tmp_path / 'x.safetensors')
    np.testing.assert_array_equal(loaded['a'], rows)
    assert loaded['b'].dtype == np.float32


def test_memory_stays_near_one_copy(tmp_path):
    spec = tiny_spec(vocab_size=2000, width=128, mlp_width=512, num_layers=12)
    params = random_params(spec)
    total, largest = sum(leaf.nbytes for leaf in jax.tree.leaves(params)), params['embed'].nbytes
    tracemalloc.start()
    try:
        write_folder(tmp_path / 'ours', spec, params)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * largest < 0.3 * total
        tracemalloc.reset_peak()
        read_folder(tmp_path / 'ours')
        assert tracemalloc.get_traced_memory()[1] < total + 1.5 * largest
    finally:
        tracemalloc.stop()


# ---- reward models ----


@pytest.mark.parametrize('name', MODELS)
def test_reward_models_both_ways(transformers, tmp_path, name):
    model = reference_model(transformers, name, 'SequenceClassification')
    expected = reference_output(model)
    model.save_pretrained(tmp_path / 'theirs')
    spec, params = read_folder(tmp_path / 'theirs')
    assert spec.head == 'reward' and 'unembed' not in params
    np.testing.assert_allclose(our_output(params, spec), expected, atol=1e-4)

    write_folder(tmp_path / 'ours', spec, params, max_shard_bytes=50_000)
    again, params_again = read_folder(tmp_path / 'ours')
    assert again == spec
    assert_same(params_again, params)
    loaded = load_reference(transformers, tmp_path / 'ours', 'SequenceClassification')
    assert loaded.config.num_labels == 1
    np.testing.assert_array_equal(reference_output(loaded), expected)


@pytest.mark.parametrize('labels', [{}, {'id2label': {'0': 'LABEL_0'}}, {'num_labels': 1}])
def test_reward_model_with_a_head_of_its_own_name(tmp_path, labels):
    spec = tiny_spec(head='reward')
    params = random_params(spec)
    write_folder(tmp_path, spec, params)
    rename_tensor(tmp_path / 'model.safetensors', 'score.weight', 'v_head.weight')
    config = json.loads((tmp_path / 'config.json').read_text())
    config = {key: value for key, value in config.items() if key not in ('num_labels', 'id2label', 'label2id')}
    config.update(architectures=['AtheneForSequenceClassification'], **labels)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    again, params_again = read_folder(tmp_path)
    assert again == spec
    assert_same(params_again, params)


def rename_tensor(file, old, new):
    tensors = {(new if name == old else name): tensor.read() for name, tensor in read_header(file).items()}
    write_arrays(file, tensors)
