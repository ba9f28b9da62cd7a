"""The Bradley-Terry objective for reward models.

Rewards depend on the persona if the reward model reads it.
"""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def bradley_terry(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's Bradley-Terry loss and metrics.

    The loss is -log σ(r_chosen - r_rejected - m), where m is the pair's margin (arXiv 2307.09288, eq. 2). Without
    margins, it is the loss of arXiv 2203.02155, eq. 1. Bradley and Terry (1952) model the probability that the chosen
    reply is preferred as σ(r_chosen - r_rejected).

    Args:
      scores: the scores of each pair's replies; only `reward_P2` and `margin_P` are used.
      hyper: `config.reward`. `center` is the weight of an additional loss term, (r_chosen + r_rejected)², which fixes
        the otherwise arbitrary offset of the rewards (arXiv 2312.09244).

    Returns:
      The loss [P], in nats, and metrics [P]. The metric `margin` is r_chosen - r_rejected, without m.
    """
    chosen_P, rejected_P = scores.reward_P2[..., 0], scores.reward_P2[..., 1]
    gap_P = chosen_P - rejected_P
    logit_P = gap_P if scores.margin_P is None else gap_P - scores.margin_P
    loss_P = -jax.nn.log_sigmoid(logit_P) + hyper.center * jnp.square(chosen_P + rejected_P)
    return loss_P, {
        'accuracy': (chosen_P > rejected_P).astype(jnp.float32),
        'margin': gap_P,
        'reward_chosen': chosen_P,
        'reward_rejected': rejected_P,
    }
