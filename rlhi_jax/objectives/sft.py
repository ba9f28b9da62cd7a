"""Supervised fine-tuning on chosen replies: the control for preference training."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def sft(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Compute the mean negative log-likelihood per token of each pair's chosen reply, [P], nats per token.

    The mean is taken within each reply first, so that every pair has the same weight. `accuracy` compares the mean
    log-likelihoods per token of the two replies.
    """
    del hyper
    mean_P2 = scores.logp_P2 / jnp.maximum(scores.length_P2, 1)
    return -mean_P2[..., 0], {
        'accuracy': (mean_P2[..., 0] > mean_P2[..., 1]).astype(jnp.float32),
        'margin': mean_P2[..., 0] - mean_P2[..., 1],
    }
