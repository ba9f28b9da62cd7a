"""The KTO objective, which learns from pairs and also from single replies that a user liked or disliked."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def kto(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss [P] and metrics [P] (arXiv 2402.01306, eq. 8).

    The loss is w_chosen (1 - σ(β (h - z))) for a chosen reply and w_rejected (1 - σ(β (z - h))) for a rejected reply.
    Here h is the reply's log-ratio log(π / π_ref). A pair's loss is the mean over the replies that it has.

    The reference point z is an estimate of KL(π ‖ π_ref); no gradient flows through it. The paper estimates z from
    replies to other prompts, but we would then have to score those replies as well. Instead, we use the mean log-ratio
    of the replies that are scored anyway, or 0 if the mean is negative. The mean is over all replies in one
    gradient-accumulation step, on all devices.

    Args:
      scores: the scores of each pair's replies; `logp_P2`, `reference_logp_P2` and `present_P2` are used.
      hyper: `config.kto`, with `beta`, `chosen_weight` and `rejected_weight`.
    """
    ratio_P2 = jnp.where(scores.present_P2, scores.logp_P2 - scores.reference_logp_P2, 0)
    replies = jnp.maximum(scores.present_P2.sum(), 1)
    reference_point = jax.lax.stop_gradient(jnp.maximum(ratio_P2.sum() / replies, 0))
    sign_2, weight_2 = jnp.array([1.0, -1.0]), jnp.array([hyper.chosen_weight, hyper.rejected_weight])
    loss_P2 = weight_2 * jax.nn.sigmoid(sign_2 * hyper.beta * (reference_point - ratio_P2))
    sides_P = jnp.maximum(scores.present_P2.sum(-1), 1)
    reward_P2 = hyper.beta * ratio_P2
    return jnp.where(scores.present_P2, loss_P2, 0).sum(-1) / sides_P, {
        'accuracy': (reward_P2[..., 0] > reward_P2[..., 1]).astype(jnp.float32),
        'margin': reward_P2[..., 0] - reward_P2[..., 1],
        'reward_chosen': reward_P2[..., 0],
        'reward_rejected': reward_P2[..., 1],
        'reference_point': jnp.broadcast_to(reference_point, sides_P.shape),
    }
