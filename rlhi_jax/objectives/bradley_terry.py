"""The Bradley-Terry reward objective. Rewards depend on the persona if the reward model reads it."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def bradley_terry(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Compute -log P(chosen > rejected), where P = σ(r_chosen - r_rejected).

    The model of P is from Bradley and Terry (1952), and the loss is from arXiv 2203.02155, eq. 1.

    Args:
      scores: the function reads `reward_P2`.
      hyper: `config.reward`. `center` is the weight of (r_chosen + r_rejected)², which fixes the otherwise arbitrary
        offset of the rewards (arXiv 2312.09244).

    Returns:
      The loss [P], in nats, and metrics [P].
    """
    chosen_P, rejected_P = scores.reward_P2[..., 0], scores.reward_P2[..., 1]
    loss_P = -jax.nn.log_sigmoid(chosen_P - rejected_P) + hyper.center * jnp.square(chosen_P + rejected_P)
    return loss_P, {
        'accuracy': (chosen_P > rejected_P).astype(jnp.float32),
        'margin': chosen_P - rejected_P,
        'reward_chosen': chosen_P,
        'reward_rejected': rejected_P,
    }
