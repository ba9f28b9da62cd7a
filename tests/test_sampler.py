"""The sampler against full forward passes, sorted top-p and the softmax itself (against transformers: test_smollm2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhi_jax.config import base_config
from rlhi_jax.generate import readable
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.decoder import Decoder, output_matrix
from rlhi_jax.models.parameters import load_params
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.sampling.generator import Generator, Prompt, Reply
from rlhi_jax.sampling.sampler import Request, Sampler, draw, keep_top_p, next_tokens
from rlhi_jax.sampling.settings import Sampling
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
        logits = hidden[0, len(tokens) - 1] @ output_matrix(params).T
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


def test_frequencies_are_the_softmax():
    logits = jnp.array([2.0, 1.0, 0.0, -1.0, -30.0])
    count = 20_000
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), count))
    for temperature in (1.0, 0.5):
        settings = Sampling(1, 1, 1, temperature)
        drawn = next_tokens(jnp.tile(logits, (count, 1)), keys, jnp.zeros(count, jnp.int32), settings)
        frequencies = np.bincount(np.asarray(drawn), minlength=5) / count
        np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / temperature), atol=0.015)


@pytest.mark.parametrize('vocabulary', [5, 128, 300])
def test_a_draw_inverts_the_cumulative_probability(vocabulary):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, vocabulary)) * 3
    logits[:, rng.permutation(vocabulary)[: vocabulary // 3]] = -np.inf
    uniform = np.append(rng.random(198), [0.0, 1 - 2.0**-23]).astype(np.float32)
    drawn = np.asarray(draw(jnp.asarray(logits, jnp.float32), jnp.asarray(uniform)))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert (probability[np.arange(200), drawn] > 0).all()
    cumulative = np.cumsum(probability, axis=-1)[np.arange(200), drawn]
    assert (cumulative >= uniform - 1e-6).all()
    assert (cumulative - probability[np.arange(200), drawn] <= uniform + 1e-6).all()


def test_top_p_keeps_what_sorting_keeps():
    logits = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32) * 3
    for top_p in (0.1, 0.5, 0.9, 0.99):
        kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), top_p)))
        for row, mask in zip(logits, kept, strict=True):
            probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            order = np.argsort(-probability)
            nucleus = order[: int(np.searchsorted(np.cumsum(probability[order]), top_p)) + 1]
            assert set(np.flatnonzero(mask)) >= set(nucleus)
            # Bisection may also keep tokens that are up to a thousandth less likely than the last of the nucleus.
            assert probability[mask].min() >= probability[nucleus].min() * 0.999


def test_prompts_that_do_not_fit_are_refused_by_name(model):
    with pytest.raises(UserError, match='config.sampler.prompt_tokens'):
        list(sampler(model, prompt_tokens=10).sample([Request(tuple(range(3, 20)))]))
    with pytest.raises(UserError, match='at most 512 tokens'):
        sampler(model, prompt_tokens=500)
    with pytest.raises(UserError, match='temperature'):
        Sampling(1, 1, 1, temperature=-1.0)
    with pytest.raises(UserError, match='top_p'):
        Sampling(1, 1, 1, top_p=0.0)


def test_long_conversations_lose_their_oldest_exchanges(model):
    c = base_config()
    c.model.dtype = 'float32'
    c.sampler.slots, c.sampler.prompt_tokens, c.sampler.new_tokens = 8, 120, 4
    turns = tuple((('user', 'assistant')[i % 2], f'turn {i} says something') for i in range(5))
    generator = Generator(c, str(model.path))
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
