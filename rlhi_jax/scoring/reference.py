"""Computes log-probabilities under the reference policy once, and caches them in a folder.

The folder's identity.json describes the model, data and settings that the log-probabilities were computed with. Each
part-N.npz contains the log-probabilities of some replies and their keys (see `Key`). Keys do not refer to rows, so the
cache stays valid if the trees are packed into rows again. An interrupted computation resumes where it stopped.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.encode import reply_keys
from rlhi_jax.data.loader import RowReader, in_order
from rlhi_jax.data.plan import RowPlan
from rlhi_jax.data.rows import Row
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, read_json, write_bytes, write_json
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.lora import lora_of
from rlhi_jax.models.parameters import Params
from rlhi_jax.parallel import processes
from rlhi_jax.scoring.rows import RowScorer

# The index of the tree, and of three of its messages: where the context starts, the prompt's last and the reply's last.
Key = tuple[int, int, int, int]


class ReferenceCache:
    """The log-probabilities of replies under the reference policy, cached in a folder.

    Raises:
      UserError: the folder is damaged, or was made for a different model, data set, template, dtype or value of
        `config.ref_sees_persona`.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self._folder = folder
        remedy = f'remove the folder {folder} and run again'
        if (folder / 'identity.json').exists():
            stored = read_json(folder / 'identity.json', remedy, fields=())
            stale = [name for name in identity if stored.get(name) != identity[name]]
            if stale:
                raise UserError(
                    f'the reference cache {folder} is stale ({stale[0]} has changed since the cache was made): {remedy}'
                )
        elif any(folder.glob('part-*.npz')):
            raise UserError(f'the reference cache {folder} has no identity.json: {remedy}')
        self._identity = identity
        self._values: dict[Key, float] = {}
        for path in sorted(folder.glob('part-*.npz')):
            try:
                with np.load(path) as part:
                    keys = map(tuple, part['keys'].tolist())
                    self._values.update(zip(keys, part['logp'].tolist(), strict=True))
            except Exception as error:  # a damaged zip file can raise many types
                raise UserError(f'{path} in the reference cache is damaged ({error}): {remedy}') from None
        self._parts = 1 + max((int(path.stem.split('-')[1]) for path in folder.glob('part-*.npz')), default=-1)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> float:
        return self._values[key]

    def add_rows(self, reader: RowReader, rows: list[int], logp: np.ndarray, *, write: bool) -> None:
        """Add the log-probabilities of the replies in some rows.

        Args:
          reader: the reader that these rows come from; it is needed for their cache keys.
          rows: row numbers; -1 is a padding row.
          logp: log-probabilities, [rows, R], nats.
          write: whether this process also stores the values on disk; set it in exactly one process.
        """
        values: dict[Key, float] = {}
        for row, row_logp in zip(rows, logp, strict=True):
            values.update(zip(row_keys(reader, row), row_logp.tolist(), strict=False))  # the rest is padding
        self._values.update(values)
        if write:
            if not (self._folder / 'identity.json').exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(self._folder / 'identity.json', self._identity)
            buffer = io.BytesIO()
            keys = np.array(list(values), np.int64).reshape(-1, 4)
            np.savez(buffer, keys=keys, logp=np.array(list(values.values()), np.float32))
            write_bytes(self._folder / f'part-{self._parts:06d}.npz', buffer.getvalue())
        self._parts += 1


def row_keys(reader: RowReader, row: int) -> list[Key]:
    """Return the cache keys of a row's replies, in the row's order; a padding row (-1) has none."""
    pieces = reader.plan.rows[row] if row >= 0 else []
    return [(tree, *key) for tree, piece, _ in pieces for key in reply_keys(reader.trees[tree], piece)]


def missing_rows(cache: ReferenceCache, reader: RowReader, rows: Iterable[int]) -> list[int]:
    """Return the numbers of the rows with a reply that is not in the cache, sorted and without repeats."""
    return [row for row in sorted(set(rows)) if not all(key in cache for key in row_keys(reader, row))]


def reference_identity(config: ConfigDict, model: ModelFolder, plan: RowPlan) -> dict[str, Any]:
    """Return the model, data and settings that cached reference log-probabilities depend on."""
    dtype, lora = config.model.dtype, lora_of(config.lora)
    if lora and lora.base_dtype != 'float32':
        dtype = f'{dtype}, of parameters in {lora.base_dtype}'
    return dict(
        model=model.weights,
        data=plan.identity['data'],
        template=plan.identity['template'],
        dtype=dtype,
        ref_sees_persona=config.ref_sees_persona,
    )


def fill_reference(
    config: ConfigDict,
    cache: ReferenceCache,
    reader: RowReader,
    rows: Iterable[int],
    decoder: Decoder,
    load: Callable[[], Params],
    mesh: Mesh,
) -> None:
    """Compute reference log-probabilities for the rows that are not fully cached, and add them to the cache.

    The reference policy is the initial policy. It runs on the same mesh and with the same code as training. `load`
    returns the policy's parameters; it is called only if rows are missing.

    Raises:
      UserError: the processes see different caches.
    """
    missing = missing_rows(cache, reader, rows)
    folder = 'the reference cache (config.data.reference, or --workdir if that is empty)'
    processes.check_agreement(digest(missing), folder)
    if not missing:
        return
    params = load()
    order = in_order(missing, config.train.batch_rows // config.train.accumulate)
    with Progress('reference', len(order), unit='batches', enabled=processes.is_main()) as progress:
        scored = RowScorer(config, decoder, mesh, scope='reference')(params, reader, order)
        for done, (numbers, logp) in enumerate(zip(order, scored, strict=True), start=1):
            cache.add_rows(reader, numbers, logp, write=processes.is_main())
            progress.update(done)
    processes.barrier('reference')


def with_reference(reader: RowReader, cache: ReferenceCache) -> Callable[[int], Row]:
    """Return a function that reads a row by number and adds `reference_logp_R` from the cache (0 for padding)."""

    def read(number: int) -> Row:
        logp_R = np.zeros(reader.plan.capacities.replies, np.float32)
        keys = row_keys(reader, number)
        logp_R[: len(keys)] = [cache[key] for key in keys]
        return reader[number]._replace(reference_logp_R=logp_R)

    return read
