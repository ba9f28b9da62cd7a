"""Scores the replies in batches of rows with one jitted function."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.loader import RowReader, batches, in_order
from rlhi_jax.data.rows import Batch
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params, load_params
from rlhi_jax.parallel import processes
from rlhi_jax.parallel.sharding import batch_sharding, local_rows, replicated, to_global
from rlhi_jax.scoring.pairs import score_replies, state_of_replies

# What a model returns for a row: each reply's score, each scored token's log-probability, or each reply's state.
Output = Literal['score', 'token', 'state']


def jit_score(
    config: ConfigDict, decoder: Decoder, mesh: Mesh, *, scope: str = 'score', output: Output = 'score'
) -> Callable[[Params, Batch], jax.Array]:
    """Return a jitted function that maps parameters and a batch to float32 values.

    The values are scores [B, R], log-probabilities [B, S] or states [B, R, 2 D], as `output` says (see
    `state_of_replies`). Every device gets a copy of all values. In profiles, the function's operations appear under
    `scope`.
    """

    def score(params: Params, batch: Batch) -> jax.Array:
        with jax.named_scope(scope):
            if output == 'state':
                return state_of_replies(decoder, params, batch)
            scores = score_replies(decoder, params, batch, chunk=config.model.logprob_chunk)
        if decoder.spec.head == 'reward':
            return scores.reward_BR
        return scores.slot_logp_BS if output == 'token' else scores.logp_BR

    return jax.jit(score, out_shardings=replicated(mesh))


class RowScorer:
    """A scorer for the replies in batches of rows.

    Scores are rewards or log-probabilities (nats), depending on the decoder's head. `output` and `scope` are as in
    `jit_score`.
    """

    def __init__(
        self, config: ConfigDict, decoder: Decoder, mesh: Mesh, *, scope: str = 'score', output: Output = 'score'
    ):
        self._mesh, self._threads = mesh, config.data.threads
        self._score = jit_score(config, decoder, mesh, scope=scope, output=output)

    def __call__(self, params: Params, reader: RowReader, order: list[list[int]]) -> Iterator[np.ndarray]:
        """Yield the scores for each batch of row numbers in `order`; the number -1 stands for a padding row.

        Their first axis is that of the rows; the rest is as in `jit_score`.
        """
        sharding, batch_rows = batch_sharding(self._mesh), len(order[0])
        local = local_rows(sharding, batch_rows)
        stream = batches(
            reader.__getitem__, order, first_step=0, num_steps=len(order), local_rows=local, threads=self._threads
        )
        for batch in stream:
            yield np.asarray(self._score(params, to_global(batch, local, sharding, batch_rows)))


def score_readers(
    config: ConfigDict,
    decoder: Decoder,
    model: ModelFolder,
    readers: Mapping[str, RowReader],
    mesh: Mesh,
    label: str,
    *,
    output: Output = 'score',
) -> dict[str, np.ndarray]:
    """Return the scores of all rows of each reader, keyed like `readers`; the model is in memory only meanwhile.

    `output` is as in `jit_score`. `label` opens the progress line.
    """
    params = load_params(decoder, model, mesh, seed=config.seed)
    scorer = RowScorer(config, decoder, mesh, output=output)
    batches_of = {name: in_order(range(len(reader)), config.eval.batch_rows) for name, reader in readers.items()}
    total, done, scores = sum(map(len, batches_of.values())), 0, {}
    with Progress(label, total, unit='batches', enabled=processes.is_main()) as progress:
        for name, reader in readers.items():
            parts = []
            for part in scorer(params, reader, batches_of[name]):
                parts.append(part)
                done += 1
                progress.update(done)
            scores[name] = np.concatenate(parts)[: len(reader)]
    jax.tree.map(lambda x: x.delete(), params)  # the next model needs the memory
    return scores
