"""Logits processors against those of transformers, and draws against the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhi_jax.sampling.logits import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    logprobs_of,
    next_tokens,
    penalize_repetition,
)
from rlhi_jax.sampling.settings import Sampling


def random_logits(rows: int, vocabulary: int = 300) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, vocabulary)).astype(np.float32) * 3


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


def by_transformers(processor: str, logits: np.ndarray, ids=None, **settings) -> np.ndarray:
    torch, process = pytest.importorskip('torch'), pytest.importorskip('transformers.generation.logits_process')
    ids = torch.zeros((len(logits), 1), dtype=torch.long) if ids is None else torch.tensor(ids)
    return getattr(process, processor)(**settings)(ids, torch.tensor(logits)).numpy()


@pytest.mark.parametrize('top_k', [1, 2, 50, 299, 1000])
def test_top_k_is_that_of_transformers(top_k):
    logits = random_logits(50).round(1)  # with ties
    expected = by_transformers('TopKLogitsWarper', logits, top_k=top_k)
    np.testing.assert_array_equal(keep_top_k(jnp.asarray(logits), top_k), expected)


@pytest.mark.parametrize('min_p', [0.001, 0.05, 0.5, 1.0])
def test_min_p_is_that_of_transformers(min_p):
    logits = random_logits(50)
    expected = by_transformers('MinPLogitsWarper', logits, min_p=min_p)
    np.testing.assert_array_equal(keep_min_p(jnp.asarray(logits), min_p), expected)


@pytest.mark.parametrize('top_p', [0.1, 0.5, 0.9])
def test_top_p_is_that_of_transformers(top_p):
    logits = random_logits(50, 100)
    expected = by_transformers('TopPLogitsWarper', logits, top_p=top_p)
    np.testing.assert_array_equal(keep_top_p(jnp.asarray(logits), top_p), expected)


@pytest.mark.parametrize('penalty', [0.8, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    logits, rng = random_logits(50), np.random.default_rng(1)
    ids = rng.integers(0, 300, (50, 40))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    expected = by_transformers('RepetitionPenaltyLogitsProcessor', logits, ids, penalty=penalty)
    np.testing.assert_allclose(
        penalize_repetition(jnp.asarray(logits), jnp.asarray(seen), penalty), expected, rtol=1e-6
    )


def test_processors_are_applied_in_the_order_of_transformers():
    """Each row is drawn many times: exactly the tokens that transformers keeps appear, at the softmax's frequencies."""
    row, count = random_logits(1, 40), 20_000
    seen = np.zeros(row.shape, bool)
    seen[0, np.argsort(row[0])[-4:]] = True
    ids = np.flatnonzero(seen[0])[None]
    expected = by_transformers('RepetitionPenaltyLogitsProcessor', row, ids, penalty=1.5)
    steps = [('Temperature', dict(temperature=1.7)), ('TopK', dict(top_k=12)), ('TopP', dict(top_p=0.9))]
    for name, setting in [*steps, ('MinP', dict(min_p=0.15))]:
        expected = by_transformers(f'{name}LogitsWarper', expected, **setting)
    settings = Sampling(1, 1, 1, 1.7, top_p=0.9, top_k=12, min_p=0.15, repetition_penalty=1.5)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), count))
    tiled = [jnp.asarray(np.tile(x, (count, 1))) for x in (row, seen)]
    drawn = next_tokens(tiled[0], keys, jnp.zeros(count, jnp.int32), settings, tiled[1])
    probability = np.exp(expected[0]) / np.exp(expected[0]).sum()
    assert 3 < (probability > 0).sum() < 12
    np.testing.assert_allclose(np.bincount(np.asarray(drawn), minlength=40) / count, probability, atol=0.015)
    assert set(np.asarray(drawn).tolist()) == set(np.flatnonzero(probability).tolist())


def test_log_probabilities_are_those_of_the_softmax():
    logits = random_logits(50)
    token = np.random.default_rng(1).integers(0, 300, 50)
    probability = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    expected = np.log(probability[np.arange(50), token])
    np.testing.assert_allclose(logprobs_of(jnp.asarray(logits), jnp.asarray(token)), expected, atol=1e-5)
