"""Hindsight distillation: learning from a user's follow-up without a rewritten reply."""

import jax
import jax.numpy as jnp

from rlhi_jax.objectives.pairs import Metrics, PairScores


def hindsight(scores: PairScores, hyper) -> tuple[jax.Array, Metrics]:
    """Return each pair's loss [P], in nats per token, and metrics [P] (arXiv 2603.12273).

    Both sides of a pair are the same reply y to a request x. On the chosen side, the prompt also contains the user's
    later follow-up o. The policy itself measures how much more likely each token of the reply becomes in hindsight:
    a_t = log π(y_t | x, o, y_<t) - log π(y_t | x, y_<t). The loss is the mean over tokens of -a_t log π(y_t | x, y_<t),
    with a_t held constant. The gradient therefore moves the policy without o towards the policy that has seen o.

    Args:
      scores: the scores of each pair's replies; `token_logp_P2N` and `length_P2` are used.
      hyper: `config.hindsight`. The first `skip_tokens` tokens of a reply are left out of all means.

    Returns:
      The loss and the metrics. `margin` is the mean of a_t; `accuracy` is 1 if that mean is above 0, and 0 otherwise.
    """
    in_hindsight_PN, logp_PN = scores.token_logp_P2N[..., 0, :], scores.token_logp_P2N[..., 1, :]
    index_N = jnp.arange(logp_PN.shape[-1])
    counts_PN = (index_N >= hyper.skip_tokens) & (index_N < scores.length_P2[..., 1:])
    tokens_P = jnp.maximum(counts_PN.sum(-1), 1)
    advantage_PN = jnp.where(counts_PN, jax.lax.stop_gradient(in_hindsight_PN - logp_PN), 0)
    margin_P = advantage_PN.sum(-1) / tokens_P
    return -(advantage_PN * logp_PN).sum(-1) / tokens_P, {
        'accuracy': (margin_P > 0).astype(jnp.float32),
        'margin': margin_P,
    }
