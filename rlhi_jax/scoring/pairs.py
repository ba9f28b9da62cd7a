"""From rows to scores of replies and pairs: the one path that policy, reference, reward model and evaluation share.

Dimension key: B rows, T tokens, R replies, P pairs, 2 chosen and rejected.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhi_jax.models.decoder import Decoder, output_matrix
from rlhi_jax.models.parameters import Params
from rlhi_jax.objectives import Objective, PairScores
from rlhi_jax.scoring.logprobs import reply_logprobs, reply_rewards

Batch = dict[str, jax.Array]


class ReplyScores(NamedTuple):
    """Per reply, [B, R] float32: reward, or log-probability (nats) and scored tokens."""

    reward_BR: jax.Array | None = None
    logp_BR: jax.Array | None = None
    length_BR: jax.Array | None = None


def score_replies(decoder: Decoder, params: Params, rows: Batch, *, chunk: int) -> ReplyScores:
    """Score every reply of a batch of rows, each token computed once."""
    hidden_BTD = decoder.apply({'params': params}, rows['tokens'], rows['position'], rows['extent'])
    if decoder.spec.head == 'reward':
        return ReplyScores(reward_BR=reply_rewards(hidden_BTD, params['score'], rows))
    logp_BR, length_BR = reply_logprobs(hidden_BTD, output_matrix(params), rows, chunk=chunk)
    return ReplyScores(logp_BR=logp_BR, length_BR=length_BR)


def pair_scores(replies: ReplyScores, rows: Batch) -> PairScores:
    """Gather the replies of each pair, [B, P, 2]; a reference is taken from `rows['reference_logp']` if it is there."""

    def gather(values_BR: jax.Array | None) -> jax.Array | None:
        if values_BR is None:
            return None
        sides = (rows['pair_chosen'], rows['pair_rejected'])
        return jnp.stack([jnp.take_along_axis(values_BR, side, axis=1) for side in sides], axis=-1)

    return PairScores(
        logp_P2=gather(replies.logp_BR),
        reference_logp_P2=gather(rows.get('reference_logp')),
        length_P2=gather(replies.length_BR),
        reward_P2=gather(replies.reward_BR),
    )


def pair_losses(
    decoder: Decoder, objective: Objective, hyper: Any, params: Params, rows: Batch, *, chunk: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted loss and metrics of every pair slot, [B, P] each; slots without a pair give 0."""
    scores = pair_scores(score_replies(decoder, params, rows, chunk=chunk), rows)
    loss_BP, metrics = objective.loss(scores, hyper)
    names = {'logp': scores.logp_P2, 'length': scores.length_P2}
    for name, values in names.items():
        if values is not None:
            metrics |= {f'{name}_chosen': values[..., 0], f'{name}_rejected': values[..., 1]}
    there_BP = rows['pair_id'] >= 0
    metrics = {name: jnp.where(there_BP, values, 0.0) for name, values in metrics.items()}
    return jnp.where(there_BP, loss_BP * rows['pair_weight'], 0.0), metrics
