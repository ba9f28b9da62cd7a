"""Scores of the replies in batches of rows, by one jitted function."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.loader import RowReader, batches
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params
from rlhi_jax.parallel.sharding import batch_sharding, local_rows, replicated, to_global
from rlhi_jax.scoring.pairs import Batch, score_replies


def jit_score(config: ConfigDict, decoder: Decoder, mesh: Mesh) -> Callable[[Params, Batch], jax.Array]:
    """The jitted function from parameters and rows to the scores of replies, [B, R] float32 on every device."""

    def score(params: Params, rows: Batch) -> jax.Array:
        scores = score_replies(decoder, params, rows, chunk=config.model.logprob_chunk)
        return scores.reward_BR if decoder.spec.head == 'reward' else scores.logp_BR

    return jax.jit(score, out_shardings=replicated(mesh))


class RowScorer:
    """Scores of replies for given batches of rows: rewards, or log-probabilities, by the decoder's head."""

    def __init__(self, config: ConfigDict, decoder: Decoder, mesh: Mesh):
        self._mesh, self._threads = mesh, config.data.threads
        self._score = jit_score(config, decoder, mesh)

    def __call__(self, params: Params, reader: RowReader, order: list[list[int]]) -> Iterator[np.ndarray]:
        """Yield [rows, R] float32 for each batch of row numbers in `order` (-1 for padding), one after another."""
        sharding, batch_rows = batch_sharding(self._mesh), len(order[0])
        places = local_rows(sharding, batch_rows)
        read = reader.__getitem__
        for rows in batches(read, order, first_step=0, num_steps=len(order), local_rows=places, threads=self._threads):
            yield np.asarray(self._score(params, to_global(rows, places, sharding, batch_rows)))
