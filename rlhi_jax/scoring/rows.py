"""Scores the replies in batches of rows with one jitted function."""

from collections.abc import Callable, Iterator, Mapping

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
from rlhi_jax.scoring.pairs import score_replies


def jit_score(
    config: ConfigDict, decoder: Decoder, mesh: Mesh, *, scope: str = 'score', per_token: bool = False
) -> Callable[[Params, Batch], jax.Array]:
    """Return a jitted function that maps parameters and a batch to reply scores, [B, R] float32.

    If `per_token` is set, the function returns the log-probability of each scored token instead, [B, S] float32. Every
    device gets a copy of all scores. In profiles, the function's operations appear under `scope`.
    """

    def score(params: Params, batch: Batch) -> jax.Array:
        with jax.named_scope(scope):
            scores = score_replies(decoder, params, batch, chunk=config.model.logprob_chunk)
        if decoder.spec.head == 'reward':
            return scores.reward_BR
        return scores.slot_logp_BS if per_token else scores.logp_BR

    return jax.jit(score, out_shardings=replicated(mesh))


class RowScorer:
    """A scorer for the replies in batches of rows.

    Scores are rewards or log-probabilities (nats), depending on the decoder's head. `per_token` and `scope` are as in
    `jit_score`.
    """

    def __init__(
        self, config: ConfigDict, decoder: Decoder, mesh: Mesh, *, scope: str = 'score', per_token: bool = False
    ):
        self._mesh, self._threads = mesh, config.data.threads
        self._score = jit_score(config, decoder, mesh, scope=scope, per_token=per_token)

    def __call__(self, params: Params, reader: RowReader, order: list[list[int]]) -> Iterator[np.ndarray]:
        """Yield the scores for each batch of row numbers in `order`; the number -1 stands for a padding row.

        The scores are [rows, R] float32, or [rows, S] with `per_token`.
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
    per_token: bool = False,
) -> dict[str, np.ndarray]:
    """Return the scores of all rows of each reader, keyed like `readers`; the model is in memory only meanwhile.

    The scores are [rows, R] float32, or [rows, S] with `per_token` (see `RowScorer`). `label` opens the progress line.
    """
    params = load_params(decoder, model, mesh, seed=config.seed)
    scorer = RowScorer(config, decoder, mesh, per_token=per_token)
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
