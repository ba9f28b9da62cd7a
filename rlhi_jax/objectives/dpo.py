"""The DPO objective and its variants.

Log-probabilities depend on the persona if the models read it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def sigmoid(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """Return the DPO loss (arXiv 2305.18290, eq. 7), [P], in nats.

    The loss is -log σ(β h), where h is `log_ratio_gap_P`: the chosen reply's log-ratio log(π / π_ref) minus the
    rejected reply's log-ratio. With label smoothing ε, the function returns the conservative DPO loss (Mitchell 2023):
    -(1 - ε) log σ(β h) - ε log σ(-β h).
    """
    logit_P = beta * log_ratio_gap_P
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(logit_P) - label_smoothing * jax.nn.log_sigmoid(-logit_P)


def robust(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """Return the robust DPO loss (arXiv 2403.00409, eq. 12), [P], in nats.

    If a fraction ε of the labels is swapped, the expected loss equals the DPO loss on correct labels. The loss is
    (-(1 - ε) log σ(β h) + ε log σ(-β h)) / (1 - 2 ε), where ε is the label smoothing and h is as in `sigmoid`.
    """
    logit_P = beta * log_ratio_gap_P
    right_P, swapped_P = -jax.nn.log_sigmoid(logit_P), -jax.nn.log_sigmoid(-logit_P)
    return ((1 - label_smoothing) * right_P - label_smoothing * swapped_P) / (1 - 2 * label_smoothing)


def hinge(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """Return SLiC's hinge loss (arXiv 2305.10425; arXiv 2309.06657, eq. 10), [P].

    The loss is max(0, 1 - β h), where h is `log_ratio_gap_P` (see `sigmoid`).
    """
    del label_smoothing
    return jax.nn.relu(1 - beta * log_ratio_gap_P)


def ipo(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """Return the IPO loss (arXiv 2310.12036, eq. 17), [P].

    The loss is (h - 1 / (2β))², where h is `log_ratio_gap_P` (see `sigmoid`).
    """
    del label_smoothing
    return jnp.square(log_ratio_gap_P - 1 / (2 * beta))


class Variant(NamedTuple):
    """A variant of DPO.

    Attributes:
      loss: function of the difference between the two replies' log-ratios.
      per_token: whether each log-ratio is averaged over the reply's tokens before the difference is taken.
    """

    loss: Callable[..., jax.Array]
    per_token: bool = False


VARIANTS = {
    'sigmoid': Variant(sigmoid),
    'length_normalized': Variant(sigmoid, per_token=True),  # the DPO loss of Tülu 3, arXiv 2411.15124, eq. 6
    'robust': Variant(robust),
    'hinge': Variant(hinge),
    'ipo': Variant(ipo, per_token=True),
}


def dpo(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss and metrics, computed from policy and reference log-probabilities.

    The loss includes the chosen reply's negative log-likelihood per token, times `hyper.nll_weight` (arXiv 2404.19733,
    eq. 1).

    Args:
      scores: the scores of each pair's replies; `logp_P2`, `reference_logp_P2` and `length_P2` are used.
      hyper: `config.dpo`, with `variant`, `beta`, `label_smoothing` and `nll_weight`.

    Returns:
      The loss [P] and metrics [P]. The rewards in the metrics are implicit rewards, β log(π / π_ref), in nats.
      `kl_estimate` is the mean of the two replies' log-ratios. It estimates KL(π ‖ π_ref) only if the policy itself
      sampled the replies.
    """
    variant = VARIANTS[hyper.variant]
    ratio_P2, length_P2 = scores.logp_P2 - scores.reference_logp_P2, jnp.maximum(scores.length_P2, 1)
    loss_ratio_P2 = ratio_P2 / length_P2 if variant.per_token else ratio_P2
    log_ratio_gap_P = loss_ratio_P2[..., 0] - loss_ratio_P2[..., 1]
    loss_P = variant.loss(log_ratio_gap_P, beta=hyper.beta, label_smoothing=hyper.label_smoothing)
    if hyper.nll_weight:
        loss_P -= hyper.nll_weight * (scores.logp_P2 / length_P2)[..., 0]
    reward_P2 = hyper.beta * ratio_P2
    return loss_P, {
        'accuracy': (reward_P2[..., 0] > reward_P2[..., 1]).astype(jnp.float32),
        'margin': reward_P2[..., 0] - reward_P2[..., 1],
        'reward_chosen': reward_P2[..., 0],
        'reward_rejected': reward_P2[..., 1],
        'kl_estimate': ratio_P2.mean(-1),
    }
