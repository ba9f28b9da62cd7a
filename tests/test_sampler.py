"""The sampler against full forward passes, transformers and the trainer's scores (SmolLM2: test_smollm2)."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhi_jax.config import base_config
from rlhi_jax.convert import export_model
from rlhi_jax.generate import readable, to_record
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.decoder import Decoder, output_head
from rlhi_jax.models.parameters import load_params
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.sampling.generator import Generator, Prompt, Reply
from rlhi_jax.sampling.sampler import Request, Sampler
from rlhi_jax.sampling.settings import Sampling
from rlhi_jax.scoring.logprobs import token_logprobs
from rlhi_jax.tokenizers import load_tokenizer
from rlhi_jax.tokenizers.template import Context

ONE = dict(data=1, fsdp=1, tensor=1)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return open_model(tiny.write_model(tmp_path_factory.mktemp('model')))


def mesh(**sizes):
    sizes = ONE | sizes
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


@functools.cache  # tests share the compiled steps
def _sampler(path: str, settings: Sampling, sizes: tuple) -> Sampler:
    return Sampler(open_model(path), settings, mesh(**dict(sizes)))


def sampler(model, *, sizes=None, **settings) -> Sampler:
    defaults = dict(slots=8, prompt_tokens=64, new_tokens=40)
    return _sampler(str(model.path), Sampling(**defaults | settings), tuple((sizes or {}).items()))


def prompts(count: int, *, longest: int = 60) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, 250, rng.integers(1, longest)).tolist()) for _ in range(count)]


def by_full_forward(model, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy continuation; every token comes from a forward pass over all tokens before it."""
    decoder = Decoder(model.spec)
    with on_mesh(mesh()):
        params = load_params(decoder, model, mesh(), seed=0)
    forward = jax.jit(lambda params, *rows: decoder.apply({'params': params}, *rows))
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(tokens)] = tokens
        position = np.arange(128)[None]
        hidden = forward(params, padded, position, 128 - position)
        logits = output_head(model.spec, params).logits(hidden[0, len(tokens) - 1])
        tokens.append(int(jnp.argmax(logits)))
        if tokens[-1] == model.tokens['eos_token_id']:
            return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


def test_greedy_is_the_argmax_of_a_full_forward_pass(model):
    asked = prompts(4)
    samples = {s.request: s for s in sampler(model, temperature=0, slots=3).sample([Request(p) for p in asked])}
    for number, prompt in enumerate(asked):
        assert list(samples[number].tokens) == by_full_forward(model, prompt, 40)
        assert samples[number].finished == (len(samples[number].tokens) < 40)


def test_samples_do_not_depend_on_slots_order_or_neighbours(model):
    asked = [Request(prompt, 3, str(number)) for number, prompt in enumerate(prompts(5))]
    alone = {}
    for number, request in enumerate(asked):
        alone |= {(number, s.sample): s.tokens for s in sampler(model, slots=1).sample([request])}
    for slots in (3, 8):
        together = {(s.request, s.sample): s.tokens for s in sampler(model, slots=slots).sample(asked)}
        assert together == alone
    backwards = {(4 - s.request, s.sample): s.tokens for s in sampler(model).sample(asked[::-1])}
    assert backwards == alone
    assert len(set(alone.values())) == len(alone)


def test_other_seeds_names_and_samples_draw_otherwise(model):
    (prompt,) = prompts(1)
    drawn = [
        [s.tokens for s in sampler(model, seed=seed).sample([Request(prompt, 1, name)])]
        for seed, name in ((0, 'a'), (0, 'b'), (1, 'a'), (0, 'a'))
    ]
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1] and drawn[0] != drawn[2]


@pytest.mark.parametrize('sizes', [dict(data=8), dict(fsdp=4, tensor=2), dict(tensor=8)])
def test_every_mesh_draws_the_same(model, sizes):
    asked = [Request(prompt, 2) for prompt in prompts(5)]
    expected = {(s.request, s.sample): s.tokens for s in sampler(model).sample(asked)}
    drawn = {(s.request, s.sample): s.tokens for s in sampler(model, sizes=sizes).sample(asked)}
    assert drawn == expected


def test_caches_grow_and_shrink_with_the_samples(model, monkeypatch):
    """In caches that are resized several times, every sample equals the one drawn in caches of the largest size."""
    asked = [Request(prompt, 2) for prompt in prompts(6, longest=120)]
    settings = dict(prompt_tokens=128, new_tokens=100, slots=3)
    expected = {(s.request, s.sample): s.tokens for s in sampler(model, **settings).sample(asked)}
    monkeypatch.setattr('rlhi_jax.sampling.sampler.SMALLEST', 16)
    growing = Sampler(model, Sampling(**settings), mesh())
    sizes, resize = [], growing._resized
    monkeypatch.setattr(growing, '_resized', lambda size, slots: sizes.append(size) or resize(size, slots))
    assert {(s.request, s.sample): s.tokens for s in growing.sample(asked)} == expected
    assert {32, 64, 128, 228} & set(sizes) and any(b < a for a, b in zip(sizes, sizes[1:], strict=False))


@functools.cache
def _scorer(path: str):
    model = open_model(path)
    decoder = Decoder(model.spec)
    with on_mesh(mesh()):
        params = load_params(decoder, model, mesh(), seed=0)

    @jax.jit
    def logprobs(ids_1T):
        position_1T = jnp.arange(ids_1T.shape[1])[None]
        hidden_1TD = decoder.apply({'params': params}, ids_1T, position_1T, ids_1T.shape[1] - position_1T)
        return token_logprobs(hidden_1TD[:, :-1], ids_1T[:, 1:], output_head(model.spec, params), chunk=127)[0]

    return logprobs


def score(model, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> np.ndarray:
    """The log-probability of each token after the prompt, computed as in training."""
    ids_1T = np.zeros((1, 128), np.int32)
    end = len(prompt) + len(tokens)
    ids_1T[0, :end] = *prompt, *tokens
    return np.asarray(_scorer(str(model.path))(ids_1T))[len(prompt) - 1 : end - 1]


@pytest.mark.parametrize(
    'settings',
    [{}, dict(temperature=0), dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2)],
)
def test_log_probabilities_are_those_of_training(model, settings):
    asked, (end, count) = prompts(4), (model.tokens['eos_token_id'], 0)
    for sample in sampler(model, logprobs=True, **settings).sample([Request(prompt, 3) for prompt in asked]):
        tokens = sample.tokens + (end,) * sample.finished
        expected = score(model, asked[sample.request], tokens)
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
        assert abs(sum(sample.logprobs) - expected.sum()) < 1e-4
        count += sample.finished
    assert count or settings
    (plain,) = sampler(model, **settings).sample([Request(asked[0])])
    (with_logprobs,) = sampler(model, logprobs=True, **settings).sample([Request(asked[0])])
    assert plain == with_logprobs._replace(logprobs=())


def test_new_settings_do_not_depend_on_the_batch(model):
    settings = dict(temperature=0.8, top_k=30, min_p=0.005, repetition_penalty=1.3, stop=('a', 'xy'), logprobs=True)
    asked = [Request(prompt, 4, str(number)) for number, prompt in enumerate(prompts(4))]
    alone = {}
    for number, request in enumerate(asked):
        alone |= {(number, s.sample): s for s in sampler(model, slots=1, **settings).sample([request])}
    for s in sampler(model, slots=16, **settings).sample(asked):
        expected = alone.pop((s.request, s.sample))
        assert (s.tokens, s.finished) == (expected.tokens, expected.finished)
        np.testing.assert_allclose(s.logprobs, expected.logprobs, atol=1e-4)
    assert not alone


def test_greedy_with_a_repetition_penalty_is_that_of_transformers(model, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    export_model(model.path, tmp_path / 'exported', step=None, dtype='float32')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'exported', dtype=torch.float32).eval()
    asked, settings = prompts(4), dict(temperature=0, repetition_penalty=1.4)
    samples = {s.request: s for s in sampler(model, **settings).sample([Request(prompt) for prompt in asked])}
    options = dict(do_sample=False, repetition_penalty=1.4, max_new_tokens=40, eos_token_id=2, pad_token_id=0)
    plain = {s.request: s for s in sampler(model, temperature=0).sample([Request(prompt) for prompt in asked])}
    for number, prompt in enumerate(asked):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            row = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()[len(prompt) :]
        assert list(samples[number].tokens) == (row[: row.index(2)] if 2 in row else row)
    assert any(samples[number].tokens != plain[number].tokens for number in plain)


def test_stop_strings_end_replies_across_tokens(model):
    """Each token is one byte, so every stop string of two letters spans two tokens."""
    tokenizer = load_tokenizer(model.tokenizer_path)
    asked = [Request(prompt, 8, 'x') for prompt in prompts(4)]
    free = {(s.request, s.sample): s for s in sampler(model).sample(asked)}
    texts = {key: tokenizer.decode(list(s.tokens)) for key, s in free.items()}
    pairs = Counter(text[i : i + 2] for text in texts.values() for i in range(len(text) - 1))
    stop = tuple(pair for pair, _ in pairs.most_common() if '\ufffd' not in pair)[:8] + ('never spelled',)
    stopped = {(s.request, s.sample): s for s in sampler(model, stop=stop).sample(asked)}
    ends = 0
    for key, text in texts.items():
        tokens, at = free[key].tokens, [text.index(one) for one in stop if one in text]
        if not at:
            assert stopped[key] == free[key]
            continue
        ends += 1
        shortest = next(n for n in range(len(tokens) + 1) if any(x in tokenizer.decode(list(tokens[:n])) for x in stop))
        assert stopped[key].finished and stopped[key].tokens == tokens[:shortest]
        assert Sampling(1, 1, 1, stop=stop).before_stop(tokenizer.decode(list(tokens[:shortest]))) == text[: min(at)]
    assert 0 < ends < len(texts)


def test_replies_leave_out_the_stop_string(model):
    c = base_config()
    c.model.dtype = 'float32'
    c.sampler.slots, c.sampler.prompt_tokens, c.sampler.new_tokens = 8, 120, 40
    prompt = Prompt('a', (('user', 'Hi.'),), samples=16)
    free = {reply.sample: reply.text for reply in Generator.open(c, str(model.path)).replies([prompt])}
    letters = Counter(''.join(free.values()))
    c.sampler.stop = tuple(letter for letter, _ in letters.most_common() if letter.isalpha() and letter.isascii())[:2]
    replies = {reply.sample: reply for reply in Generator.open(c, str(model.path)).replies([prompt])}
    for number, text in free.items():
        cut = re.split('|'.join(c.sampler.stop), text)[0]
        assert replies[number].text == cut.strip()
        assert replies[number].finished or cut == text


def test_prompts_that_do_not_fit_are_refused_by_name(model):
    with pytest.raises(UserError, match='config.sampler.prompt_tokens'):
        list(sampler(model, prompt_tokens=10).sample([Request(tuple(range(3, 20)))]))
    with pytest.raises(UserError, match='at most 512 tokens'):
        sampler(model, prompt_tokens=500)
    with pytest.raises(UserError, match='temperature'):
        Sampling(1, 1, 1, temperature=-1.0)
    wrong = dict(top_p=0.0, top_k=-1, min_p=1.5, repetition_penalty=0.0, stop=('',))
    for name, value in wrong.items():
        with pytest.raises(UserError, match=f'config.sampler.{name} is '):
            Sampling(1, 1, 1, **{name: value})


def test_long_conversations_lose_their_oldest_exchanges(model):
    c = base_config()
    c.model.dtype = 'float32'
    c.sampler.slots, c.sampler.prompt_tokens, c.sampler.new_tokens = 8, 120, 4
    turns = tuple((('user', 'assistant')[i % 2], f'turn {i} says something') for i in range(5))
    generator = Generator.open(c, str(model.path))
    fitted = generator.fit(Prompt('a', turns))
    assert 0 < len(fitted.turns) < 5 and fitted.turns[-1] == turns[-1] and fitted.turns[0][0] == 'user'
    assert generator.fit(Prompt('b', (('user', 'x' * 500),))) is None
    kept = len(fitted.turns)
    assert generator.fit(Prompt('a', turns, keep=kept)).turns == fitted.turns
    assert generator.fit(Prompt('a', turns, keep=kept + 2)) is None  # the turns to reply to must not be left out


def test_a_reply_is_printed_below_its_persona_and_the_last_turn():
    turns = (('user', 'Hi.'), ('assistant', 'Hello.'), ('user', 'Why?'))
    prompt, nobody = Prompt('a', turns, Context('', 'I like lists.')), Prompt('b', turns)
    assert readable(prompt, Reply('a', 0, 'So.', True)) == 'persona: I like lists.\nuser: Why?\nassistant: So.\n'
    assert readable(nobody, Reply('b', 0, 'So', False)) == 'persona: none\nuser: Why?\nassistant: So … (cut off)\n'


def test_records_contain_log_probabilities_only_if_asked_for():
    reply = Reply('a', 0, 'So.', True, (-0.5, -1.0))
    assert to_record(reply, False) == dict(id='a', sample=0, text='So.', finished=True)
    assert to_record(reply, True) == to_record(reply, False) | dict(logprob=-1.5, logprobs=(-0.5, -1.0))
