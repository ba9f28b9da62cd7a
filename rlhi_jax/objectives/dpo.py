"""Direct preference optimisation and its kin, persona-conditioned by what the log-probabilities are conditioned on."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def sigmoid(margin_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """DPO (arXiv 2305.18290, eq. 7): -log σ(β h), with h the difference of log-ratios; [P], nats.

    With label smoothing ε, conservative DPO (Mitchell 2023): -(1 - ε) log σ(β h) - ε log σ(-β h).
    """
    logit_P = beta * margin_P
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(logit_P) - label_smoothing * jax.nn.log_sigmoid(-logit_P)


def hinge(margin_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """SLiC's hinge on the DPO margin (arXiv 2305.10425; 2309.06657, eq. 10): max(0, 1 - β h); [P]."""
    del label_smoothing
    return jax.nn.relu(1 - beta * margin_P)


def ipo(margin_P: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """IPO (arXiv 2310.12036, eq. 17): (h - 1 / 2β)², on log-ratios averaged over each reply's tokens; [P]."""
    del label_smoothing
    return jnp.square(margin_P - 1 / (2 * beta))


VARIANTS = {'sigmoid': sigmoid, 'hinge': hinge, 'ipo': ipo}


def dpo(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Loss per pair from policy and reference log-probabilities.

    Args:
      scores: `logp_P2`, `reference_logp_P2`, `length_P2`.
      hyper: `config.dpo`: `variant`, `beta`, `label_smoothing`.

    Returns:
      Loss [P] and metrics [P]. Rewards are implicit: β log(π / π_ref), nats. `kl_estimate` is the mean log-ratio per
      reply: it estimates KL(π ‖ π_ref) only as far as the replies are the policy's own.
    """
    ratio_P2 = scores.logp_P2 - scores.reference_logp_P2
    loss_ratio_P2 = ratio_P2 / jnp.maximum(scores.length_P2, 1) if hyper.variant == 'ipo' else ratio_P2
    margin_P = loss_ratio_P2[..., 0] - loss_ratio_P2[..., 1]
    loss_P = VARIANTS[hyper.variant](margin_P, beta=hyper.beta, label_smoothing=hyper.label_smoothing)
    reward_P2 = hyper.beta * ratio_P2
    return loss_P, {
        'accuracy': (reward_P2[..., 0] > reward_P2[..., 1]).astype(jnp.float32),
        'margin': reward_P2[..., 0] - reward_P2[..., 1],
        'reward_chosen': reward_P2[..., 0],
        'reward_rejected': reward_P2[..., 1],
        'kl_estimate': ratio_P2.mean(-1),
    }
