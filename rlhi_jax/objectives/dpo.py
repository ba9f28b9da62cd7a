"""The DPO objective and its variants. Log-probabilities depend on the persona if the models read it."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def sigmoid(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """DPO (arXiv 2305.18290, eq. 7): -log σ(β h), where h is the gap between the replies' log-ratios; [P], nats.

    With label smoothing ε, this is conservative DPO (Mitchell 2023): -(1 - ε) log σ(β h) - ε log σ(-β h).
    """
    logit_P = beta * log_ratio_gap_P
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(logit_P) - label_smoothing * jax.nn.log_sigmoid(-logit_P)


def hinge(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """SLiC's hinge loss on the gap between log-ratios (arXiv 2305.10425; 2309.06657, eq. 10): max(0, 1 - β h); [P]."""
    del label_smoothing
    return jax.nn.relu(1 - beta * log_ratio_gap_P)


def ipo(log_ratio_gap_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """IPO (arXiv 2310.12036, eq. 17): (h - 1 / 2β)², with log-ratios averaged over each reply's tokens; [P]."""
    del label_smoothing
    return jnp.square(log_ratio_gap_P - 1 / (2 * beta))


VARIANTS = {'sigmoid': sigmoid, 'hinge': hinge, 'ipo': ipo}


def dpo(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Compute the loss per pair from policy and reference log-probabilities.

    Args:
      scores: the function reads `logp_P2`, `reference_logp_P2` and `length_P2`.
      hyper: `config.dpo`, with `variant`, `beta` and `label_smoothing`.

    Returns:
      The loss [P] and metrics [P]. Rewards are implicit: β log(π / π_ref), in nats. `kl_estimate` is the mean log-ratio
      of the two replies, which estimates KL(π ‖ π_ref) only for replies that the policy itself sampled.
    """
    ratio_P2 = scores.logp_P2 - scores.reference_logp_P2
    loss_ratio_P2 = ratio_P2 / jnp.maximum(scores.length_P2, 1) if hyper.variant == 'ipo' else ratio_P2
    log_ratio_gap_P = loss_ratio_P2[..., 0] - loss_ratio_P2[..., 1]
    loss_P = VARIANTS[hyper.variant](log_ratio_gap_P, beta=hyper.beta, label_smoothing=hyper.label_smoothing)
    reward_P2 = hyper.beta * ratio_P2
    return loss_P, {
        'accuracy': (reward_P2[..., 0] > reward_P2[..., 1]).astype(jnp.float32),
        'margin': reward_P2[..., 0] - reward_P2[..., 1],
        'reward_chosen': reward_P2[..., 0],
        'reward_rejected': reward_P2[..., 1],
        'kl_estimate': ratio_P2.mean(-1),
    }
