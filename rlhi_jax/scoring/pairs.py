"""Scores the replies and pairs in rows, with a policy, the reference policy or a reward model.

Dimension key: B rows, T tokens, S slots for scored tokens, R replies, P pairs, 2 the chosen and the rejected reply,
N the largest number of scored tokens that a reply can have.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhi_jax.data.rows import Batch
from rlhi_jax.models.decoder import Decoder, output_head, variables
from rlhi_jax.models.parameters import Params
from rlhi_jax.objectives import Objective, PairScores
from rlhi_jax.scoring.logprobs import per_reply, reply_rewards, reply_states, reply_tokens, slot_logprobs


class ReplyScores(NamedTuple):
    """The scores of replies, float32: rewards for a reward model, and all other fields for a language model.

    Attributes:
      reward_BR: output of the reward head.
      logp_BR: log-probability summed over the reply's scored tokens, in nats.
      length_BR: number of scored tokens in the reply.
      slot_logp_BS: log-probability of each scored token, in nats.
    """

    reward_BR: jax.Array | None = None
    logp_BR: jax.Array | None = None
    length_BR: jax.Array | None = None
    slot_logp_BS: jax.Array | None = None


def score_replies(decoder: Decoder, params: Params, batch: Batch, *, chunk: int) -> ReplyScores:
    """Return the scores of every reply in a batch of rows; each token passes through the decoder only once."""
    hidden_BTD = decoder.apply(variables(params), batch.tokens_BT, batch.position_BT, batch.extent_BT)
    if decoder.spec.head == 'reward':
        return ReplyScores(reward_BR=reply_rewards(hidden_BTD, params['score'], batch))
    return log_probabilities(slot_logprobs(hidden_BTD, output_head(decoder.spec, params), batch, chunk=chunk), batch)


def state_of_replies(decoder: Decoder, params: Params, batch: Batch) -> jax.Array:
    """Return the state of every reply in a batch of rows, [B, R, 2 D] float32 (see `reply_states`)."""
    hidden_BTD = decoder.apply(variables(params), batch.tokens_BT, batch.position_BT, batch.extent_BT)
    return reply_states(hidden_BTD, batch)


def log_probabilities(logp_BS: jax.Array, batch: Batch) -> ReplyScores:
    """Return the reply scores computed from the log-probability of each scored token."""
    lengths_BR = per_reply(jnp.ones_like(logp_BS), batch)
    return ReplyScores(logp_BR=per_reply(logp_BS, batch), length_BR=lengths_BR, slot_logp_BS=logp_BS)


def pair_scores(replies: ReplyScores, batch: Batch) -> PairScores:
    """Return the scores of each pair's replies; margins, ties and reference scores come from the batch."""

    def of_sides(score: Callable[[jax.Array], jax.Array], axis: int) -> jax.Array:
        with jax.named_scope('chosen'):
            chosen = score(batch.pair_chosen_BP)
        with jax.named_scope('rejected'):
            rejected = score(batch.pair_rejected_BP)
        return jnp.stack([chosen, rejected], axis)

    def gather(values_BR: jax.Array | None) -> jax.Array | None:
        if values_BR is None:
            return None
        return of_sides(lambda reply_BP: jnp.take_along_axis(values_BR, reply_BP, axis=1), axis=-1)

    def tokens(values_BS: jax.Array | None) -> jax.Array | None:
        return (
            None if values_BS is None else of_sides(lambda reply_BP: reply_tokens(values_BS, reply_BP, batch), axis=-2)
        )

    with jax.named_scope('reference'):
        reference_logp_P2 = gather(batch.reference_logp_BR)
    return PairScores(
        logp_P2=gather(replies.logp_BR),
        reference_logp_P2=reference_logp_P2,
        length_P2=gather(replies.length_BR),
        reward_P2=gather(replies.reward_BR),
        margin_P=batch.pair_margin_BP,
        tied_P=batch.pair_tied_BP,
        token_logp_P2N=tokens(replies.slot_logp_BS),
        present_P2=of_sides(lambda reply_BP: (reply_BP >= 0) & (batch.pair_id_BP >= 0), axis=-1),
    )


def pair_losses(
    decoder: Decoder, objective: Objective, hyper: Any, params: Params, batch: Batch, *, chunk: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the weighted loss and the metrics of every pair slot, [B, P] each; all are 0 in slots without a pair."""
    with jax.named_scope('policy'):
        replies = score_replies(decoder, params, batch, chunk=chunk)
    scores = pair_scores(replies, batch)
    loss_BP, metrics = objective.loss(scores, hyper)
    for name, values in {'logp': scores.logp_P2, 'length': scores.length_P2}.items():
        if values is not None:
            metrics |= {f'{name}_chosen': values[..., 0], f'{name}_rejected': values[..., 1]}
    is_pair_BP = batch.pair_id_BP >= 0
    metrics = {name: jnp.where(is_pair_BP, values, 0.0) for name, values in metrics.items()}
    return jnp.where(is_pair_BP, loss_BP * batch.pair_weight_BP, 0.0), metrics
