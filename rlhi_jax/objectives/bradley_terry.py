"""The Bradley-Terry objective for reward models, with ties and single replies.

Rewards depend on the persona if the reward model reads it.
"""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def bradley_terry(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss [P], in nats, and metrics [P].

    Bradley and Terry (1952) model the probability that the chosen reply is preferred as σ(g), where the gap g is
    r_chosen - r_rejected. The loss is -log σ(g - m), where m is the pair's margin (arXiv 2307.09288, eq. 2). Without
    margins, it is the loss of arXiv 2203.02155, eq. 1. Three options extend it:

    - Ties: in the model of Davidson (1970), chosen, rejected and a tie have probabilities in the ratio
      e^(g/2) : e^(-g/2) : ν. The loss is the negative log-probability of the user's judgement. With ν = 0, this is
      the model of Bradley and Terry.
    - Label smoothing: with probability ε, chosen and rejected are taken to be swapped. The loss is 1 - ε times the loss
      for g plus ε times the loss for -g.
    - Single replies: a reply that the pair does not have counts as one with reward 0. A liked reply's reward then rises
      above 0, and a disliked reply's reward falls below 0.

    Args:
      scores: the scores of each pair's replies; `reward_P2`, `margin_P`, `tied_P` and `present_P2` are used.
      hyper: `config.reward`. `ties` is ν, and `label_smoothing` is ε. `center` is the weight of an additional loss
        term, (r_chosen + r_rejected)², which fixes the otherwise arbitrary offset of the rewards (arXiv 2312.09244).

    Returns:
      The loss and the metrics. The metric `margin` is g, without m. `accuracy` is 0.5 for ties.
    """
    reward_P2 = scores.reward_P2
    if scores.present_P2 is not None:
        reward_P2 = jnp.where(scores.present_P2, reward_P2, 0)
    chosen_P, rejected_P = reward_P2[..., 0], reward_P2[..., 1]
    gap_P = chosen_P - rejected_P
    logit_P = gap_P if scores.margin_P is None else gap_P - scores.margin_P
    loss_P, right_P = -_log_preferred(logit_P, hyper.ties), (chosen_P > rejected_P).astype(jnp.float32)
    if hyper.label_smoothing:
        swapped_P = -_log_preferred(-logit_P, hyper.ties)
        loss_P = (1 - hyper.label_smoothing) * loss_P + hyper.label_smoothing * swapped_P
    if hyper.ties and scores.tied_P is not None:
        # A tie's probability is that of a preference times ν e^(-g/2).
        tie_P = -(_log_preferred(gap_P, hyper.ties) + jnp.log(hyper.ties) - gap_P / 2)
        loss_P, right_P = jnp.where(scores.tied_P, tie_P, loss_P), jnp.where(scores.tied_P, 0.5, right_P)
    return loss_P + hyper.center * jnp.square(chosen_P + rejected_P), {
        'accuracy': right_P,
        'margin': gap_P,
        'reward_chosen': chosen_P,
        'reward_rejected': rejected_P,
    }


def _log_preferred(gap_P: jax.Array, ties: float) -> jax.Array:
    """Return `log_preferred` for ν = `ties`, which may be 0."""
    return log_preferred(gap_P, jnp.log(ties)) if ties else jax.nn.log_sigmoid(gap_P)


def log_preferred(gap_P: jax.Array, log_tie: jax.Array | float) -> jax.Array:
    """Return the log-probability that the first of two replies is preferred, given the gap between their rewards.

    `log_tie` is log ν in the model of Davidson (see `bradley_terry`).
    """
    return -jax.nn.logsumexp(jnp.stack([jnp.zeros_like(gap_P), -gap_P, log_tie - gap_P / 2]), axis=0)
