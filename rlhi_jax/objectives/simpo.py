"""The SimPO objective: preference training without a reference model."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def simpo(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss [P], in nats, and metrics [P] (arXiv 2405.14734, eq. 6).

    A reply's reward is β times its log-probability per token. The loss is -log σ(r_chosen - r_rejected - γ).

    Args:
      scores: the scores of each pair's replies; `logp_P2` and `length_P2` are used.
      hyper: `config.simpo`, with `beta` and `gamma`.
    """
    reward_P2 = hyper.beta * scores.logp_P2 / jnp.maximum(scores.length_P2, 1)
    margin_P = reward_P2[..., 0] - reward_P2[..., 1]
    return -jax.nn.log_sigmoid(margin_P - hyper.gamma), {
        'accuracy': (margin_P > 0).astype(jnp.float32),
        'margin': margin_P,
        'reward_chosen': reward_P2[..., 0],
        'reward_rejected': reward_P2[..., 1],
    }
