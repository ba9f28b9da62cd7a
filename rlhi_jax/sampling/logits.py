"""Draws next tokens from logits, after applying these processors in the same order as the package `transformers`:

      repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw

A processor with its default setting is skipped. Greedy decoding (temperature 0) applies only the repetition penalty and
takes the likeliest token. A token that a processor excludes gets the logit -inf.

Dimension key: S slots, V vocabulary, G groups of X vocabulary entries.
"""

import math

import jax
import jax.numpy as jnp

from rlhi_jax.sampling.settings import Sampling

GROUP = 128  # vocabulary entries per group; to draw a token, probabilities are first summed within groups


def penalize_repetition(logits_SV: jax.Array, seen_SV: jax.Array, penalty: float) -> jax.Array:
    """Return the logits, with the repetition penalty applied to the tokens marked in `seen_SV`.

    The marked tokens are those of the prompt and of the reply so far. The penalty divides positive logits and
    multiplies negative logits. Source: CTRL, arXiv 1909.05858, section 4.1, and, for negative logits, `transformers`.
    """
    penalized_SV = jnp.where(logits_SV < 0, logits_SV * penalty, logits_SV / penalty)
    return jnp.where(seen_SV, penalized_SV, logits_SV)


def keep_top_k(logits_SV: jax.Array, top_k: int) -> jax.Array:
    """Return the logits, with all except the `top_k` largest replaced by -inf; ties for the last place are kept."""
    least_S1 = jax.lax.top_k(logits_SV, min(top_k, logits_SV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_SV >= least_S1, logits_SV, -jnp.inf)


def keep_top_p(logits_SV: jax.Array, top_p: float) -> jax.Array:
    """Return the logits, with all logits outside the nucleus replaced by -inf.

    The nucleus is the smallest set of most likely tokens whose total probability reaches `top_p` (arXiv 1904.09751).
    The lowest probability in the nucleus is found by bisection instead of sorting, with a relative error below 0.001.
    """
    probability_SV = jax.nn.softmax(logits_SV, axis=-1)

    def halve(_, bounds):
        low_S, high_S = bounds
        middle_S = jnp.sqrt(low_S * high_S)
        enough_S = jnp.where(probability_SV >= middle_S[:, None], probability_SV, 0).sum(-1) >= top_p
        return jnp.where(enough_S, middle_S, low_S), jnp.where(enough_S, high_S, middle_S)

    low_S = jnp.full(logits_SV.shape[0], 1e-12)
    low_S, _ = jax.lax.fori_loop(0, 16, halve, (low_S, probability_SV.max(-1)))
    return jnp.where(probability_SV >= low_S[:, None], logits_SV, -jnp.inf)


def draw(logits_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
    """Draw one token per slot, [S] int32: the first whose cumulative probability exceeds the number in `uniform_S`.

    This needs one random number per token drawn; the Gumbel trick needs one for every entry of the vocabulary.
    Probabilities are first summed in groups. The cumulative sum over groups selects the group, and the cumulative sum
    within the group selects the token.
    """
    slots, vocabulary = logits_SV.shape
    weight_SV = jnp.exp(logits_SV - logits_SV.max(-1, keepdims=True))
    weight_SGX = jnp.pad(weight_SV, ((0, 0), (0, -vocabulary % GROUP))).reshape(slots, -1, GROUP)
    sum_SG = jnp.cumsum(weight_SGX.sum(-1), axis=-1)
    left_S = uniform_S * sum_SG[:, -1]
    group_S = jnp.argmax(sum_SG > left_S[:, None], axis=-1)
    every = jnp.arange(slots)
    weight_SX = weight_SGX[every, group_S]
    left_S -= jnp.where(group_S > 0, sum_SG[every, group_S - 1], 0)
    passed_SX = (jnp.cumsum(weight_SX, axis=-1) > left_S[:, None]) & (weight_SX > 0)
    # Because of rounding, it can happen that no cumulative sum exceeds `left_S`. Then we take the likeliest token.
    index_S = jnp.where(passed_SX.any(-1), jnp.argmax(passed_SX, axis=-1), jnp.argmax(weight_SX, axis=-1))
    return (group_S * GROUP + index_S).astype(jnp.int32)


def keep_min_p(logits_SV: jax.Array, min_p: float) -> jax.Array:
    """Return the logits, with -inf for tokens less than `min_p` times as likely as the likeliest (arXiv 2407.01082)."""
    return jnp.where(logits_SV >= logits_SV.max(-1, keepdims=True) + math.log(min_p), logits_SV, -jnp.inf)


def next_tokens(
    logits_SV: jax.Array, key_S2: jax.Array, position_S: jax.Array, sampling: Sampling, seen_SV: jax.Array | None = None
) -> jax.Array:
    """Return the next token of each slot, [S] int32, drawn with the slot's own random key and position.

    `seen_SV` marks the tokens that `sampling.repetition_penalty` applies to; it is None if this penalty is 1.
    """
    if seen_SV is not None:
        logits_SV = penalize_repetition(logits_SV, seen_SV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return jnp.argmax(logits_SV, axis=-1).astype(jnp.int32)
    logits_SV = logits_SV / sampling.temperature
    if sampling.top_k:
        logits_SV = keep_top_k(logits_SV, sampling.top_k)
    if sampling.top_p < 1:
        logits_SV = keep_top_p(logits_SV, sampling.top_p)
    if sampling.min_p:
        logits_SV = keep_min_p(logits_SV, sampling.min_p)

    def uniform(key_2, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key_2), position))

    return draw(logits_SV, jax.vmap(uniform)(key_S2, position_S))


def logprobs_of(logits_SV: jax.Array, token_S: jax.Array) -> jax.Array:
    """Return the log-probability of each slot's token, [S], in nats; `logits_SV` must be unprocessed."""
    chosen_S = jnp.take_along_axis(logits_SV, token_S[:, None], axis=-1)[:, 0]
    return chosen_S - jax.nn.logsumexp(logits_SV, axis=-1)
