"""Computes the log-probabilities and rewards of replies.

Logits are computed only for scored tokens, and only one chunk of logits is in memory at a time.

Dimension key: B rows, T tokens, S slots for scored tokens, C slots in a chunk, N scored tokens of a reply, R replies,
P pairs, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from rlhi_jax.data.rows import Batch
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.decoder import OutputHead
from rlhi_jax.parallel.sharding import constrain


def token_logprobs(hidden_BSD: jax.Array, target_BS: jax.Array, head: OutputHead, *, chunk: int) -> jax.Array:
    """Return log p(target | hidden) in nats, [B, S] float32.

    At most [B, chunk, V] logits exist at a time, even when gradients are computed. On a mesh, the devices that share a
    copy of the parameters process their chunks together, and each device computes the logits for its own part of
    the vocabulary. Hidden states move between these devices; the output matrix and its gradient stay in place.

    Raises:
      UserError: the number of slots is greater than `chunk` and is not a multiple of it.
    """
    batch, slots, width = hidden_BSD.shape
    chunk = min(chunk, slots)
    if slots % chunk:
        raise UserError(
            f'config.model.logprob_chunk ({chunk}) must divide config.rows.scored ({slots}): choose a divisor of '
            f'{slots}'
        )

    head = head._replace(matrix_VD=constrain(head.matrix_VD, ('split_vocab', None)))

    @jax.checkpoint
    def one_chunk(_, inputs):
        hidden_BCD, target_BC = inputs
        hidden_BCD = constrain(hidden_BCD, ('shared_rows', None, None))
        logits_BCV = constrain(head.logits(hidden_BCD), ('shared_rows', None, 'split_vocab'))
        # A gather along the split vocabulary would collect all logits on every device.
        chosen_BCV = jnp.arange(logits_BCV.shape[-1]) == target_BC[..., None]
        chosen_BC = jnp.where(chosen_BCV, logits_BCV, 0).sum(-1)
        return None, chosen_BC - jax.nn.logsumexp(logits_BCV, axis=-1)

    hidden_chunks = jnp.moveaxis(hidden_BSD.reshape(batch, -1, chunk, width), 1, 0)
    target_chunks = jnp.moveaxis(target_BS.reshape(batch, -1, chunk), 1, 0)
    _, logp_chunks = jax.lax.scan(one_chunk, None, (hidden_chunks, target_chunks))
    return jnp.moveaxis(logp_chunks, 0, 1).reshape(batch, slots)


def slot_logprobs(hidden_BTD: jax.Array, head: OutputHead, batch: Batch, *, chunk: int) -> jax.Array:
    """Return the log-probability of every scored token, [B, S] float32.

    Scored token i is predicted by the hidden state at `i - back[i]`, the index of the previous token on its path.
    """
    slot_BS = batch.slot_token_BS
    predictor_BS = slot_BS - jnp.take_along_axis(batch.back_BT, slot_BS, axis=1)
    hidden_BSD = jnp.take_along_axis(hidden_BTD, predictor_BS[..., None], axis=1)
    target_BS = jnp.take_along_axis(batch.tokens_BT, slot_BS, axis=1)
    return token_logprobs(hidden_BSD, target_BS, head, chunk=chunk)


def per_reply(values_BS: jax.Array, batch: Batch) -> jax.Array:
    """Return the sum of the values of each reply's scored tokens, [B, R], or [B, R, D] if the values are [B, S, D]."""
    replies = batch.reply_last_BR.shape[1]

    def sums(values_S, reply_S):  # padding slots point past the last reply and are cut off
        return jax.ops.segment_sum(values_S, reply_S, num_segments=replies + 1)[:replies]

    return jax.vmap(sums)(values_BS, batch.slot_reply_BS)


def reply_states(hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
    """Return the state of every reply, [B, R, 2 D] float32: its last hidden state, and the mean over its scored tokens.

    The last state has read all of the conversation. The mean says more about the words of the reply.
    """
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    last_BRD = jnp.take_along_axis(hidden_BTD, batch.reply_last_BR[..., None], axis=1)
    hidden_BSD = jnp.take_along_axis(hidden_BTD, batch.slot_token_BS[..., None], axis=1)
    length_BR = per_reply(jnp.ones(hidden_BSD.shape[:2]), batch)
    mean_BRD = per_reply(hidden_BSD, batch) / jnp.maximum(length_BR, 1)[..., None]
    return jnp.concatenate([last_BRD, mean_BRD], axis=-1)


def reply_tokens(values_BS: jax.Array, reply_BP: jax.Array, batch: Batch) -> jax.Array:
    """Return the scored tokens' values for each reply whose index is in `reply_BP`, [B, P, N] with N = S.

    Each reply's values start with its first token. A reply's slots are contiguous, so the entries after its last token
    belong to other slots.
    """

    def one_row(values_S, reply_P, slot_reply_S):
        first_P = jnp.searchsorted(slot_reply_S, reply_P)  # the slots are sorted by reply
        index_PN = first_P[:, None] + jnp.arange(len(values_S))
        return jnp.take(values_S, index_PN, mode='clip')

    return jax.vmap(one_row)(values_BS, reply_BP, batch.slot_reply_BS)


def reply_rewards(hidden_BTD: jax.Array, score_D1: jax.Array, batch: Batch) -> jax.Array:
    """Return the reward of every reply, [B, R] float32, computed from the hidden state at the reply's last token."""
    last_BRD = jnp.take_along_axis(hidden_BTD, batch.reply_last_BR[..., None], axis=1)
    reward_BR1 = jnp.einsum('BRD,DO->BRO', last_BRD.astype(jnp.float32), score_D1.astype(jnp.float32))
    return reward_BR1[..., 0]
