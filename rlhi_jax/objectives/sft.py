"""Supervised fine-tuning on chosen replies, as a baseline for preference training."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def sft(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss [P], in nats per token, and metrics [P].

    The loss is the chosen reply's negative log-likelihood, averaged over the reply's tokens. Long replies therefore do
    not count more than short ones. `accuracy` and `margin` compare the averaged log-likelihoods of the two replies.
    They are 0 in pairs without a rejected reply.
    """
    del hyper
    mean_P2 = scores.logp_P2 / jnp.maximum(scores.length_P2, 1)
    margin_P = mean_P2[..., 0] - mean_P2[..., 1]
    if scores.present_P2 is not None:
        margin_P = jnp.where(scores.present_P2.all(-1), margin_P, 0)
    return -mean_P2[..., 0], {'accuracy': (margin_P > 0).astype(jnp.float32), 'margin': margin_P}
