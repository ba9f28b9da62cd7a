"""Scores of the replies in batches of rows, from one jitted function."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.loader import RowReader, batches
from rlhi_jax.data.rows import Batch
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params
from rlhi_jax.parallel.sharding import batch_sharding, local_rows, replicated, to_global
from rlhi_jax.scoring.pairs import score_replies


def jit_score(
    config: ConfigDict, decoder: Decoder, mesh: Mesh, *, scope: str = 'score'
) -> Callable[[Params, Batch], jax.Array]:
    """The jitted function from parameters and rows to the scores of replies, [B, R] float32 on every device.

    Profiles show its operations under `scope`.
    """

    def score(params: Params, batch: Batch) -> jax.Array:
        with jax.named_scope(scope):
            scores = score_replies(decoder, params, batch, chunk=config.model.logprob_chunk)
        return scores.reward_BR if decoder.spec.head == 'reward' else scores.logp_BR

    return jax.jit(score, out_shardings=replicated(mesh))


class RowScorer:
    """Scores the replies of given batches of rows: rewards or log-probabilities (nats), as the decoder's head gives.

    Profiles show its operations under `scope`.
    """

    def __init__(self, config: ConfigDict, decoder: Decoder, mesh: Mesh, *, scope: str = 'score'):
        self._mesh, self._threads = mesh, config.data.threads
        self._score = jit_score(config, decoder, mesh, scope=scope)

    def __call__(self, params: Params, reader: RowReader, order: list[list[int]]) -> Iterator[np.ndarray]:
        """Yield the scores of each batch of row numbers in `order` (-1 for padding), [rows, R] float32."""
        sharding, batch_rows = batch_sharding(self._mesh), len(order[0])
        local = local_rows(sharding, batch_rows)
        stream = batches(
            reader.__getitem__, order, first_step=0, num_steps=len(order), local_rows=local, threads=self._threads
        )
        for batch in stream:
            yield np.asarray(self._score(params, to_global(batch, local, sharding, batch_rows)))
