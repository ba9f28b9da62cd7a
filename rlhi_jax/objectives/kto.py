"""The KTO objective, which also learns from replies that were only liked or only disliked."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def kto(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss and metrics (arXiv 2402.01306, eq. 8), [P] each.

    The loss of a chosen reply is w_chosen (1 - σ(β (h - z))), and that of a rejected reply is
    w_rejected (1 - σ(β (z - h))), where h is the reply's log-ratio log(π / π_ref). The loss of a pair is the mean over
    the sides that it has.

    The reference point z estimates KL(π ‖ π_ref), without gradient. The paper estimates z from replies to other
    prompts, which would have to be scored as well. We use the mean log-ratio of the replies that are scored anyway, or
    0 if it is negative. The mean is over all replies in one accumulation step, on all devices.

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
