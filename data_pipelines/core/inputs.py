"""Finds and reads the folders in `config.data` that earlier stages have finished."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.core.record_files import RECORDS, stream_records
from data_pipelines.core.records import Record
from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest, read_json

# The stages of keys in `config.data`. All other keys have the same name as their stage.
_STAGES = dict(conversations='ingest', scores='oracle_scores', raw='sources.simulated')


def stage_of(key: str) -> str:
    """Return the name of the stage that writes the folder `config.data.KEY`.

    >>> stage_of('conversations'), stage_of('rewrites')
    ('ingest', 'rewrites')
    """
    return _STAGES.get(key, key)


def input_folder(config: ConfigDict, key: str) -> Path:
    """Return the finished folder of an earlier stage, given its key in `config.data`.

    Raises:
      UserError: the key is empty, or the folder is not finished or belongs to another stage.
    """
    require(config, f'data.{key}')
    folder, stage = Path(config.data[key]), stage_of(key)
    if not (folder / 'manifest.json').exists():
        raise UserError(
            f'config.data.{key}: {folder} is not a finished folder of the {stage!r} stage: run that stage first'
        )
    made_by = read_json(folder / 'manifest.json', f'rerun the {stage!r} stage', fields=()).get('stage', stage)
    if made_by != stage:
        raise UserError(
            f'config.data.{key}: {folder} was made by the {made_by!r} stage, not by {stage!r}: set the key to another '
            'folder'
        )
    return folder


def read_records(config: ConfigDict, key: str) -> Iterator[Record]:
    """Yield the records in the finished folder `config.data.KEY`."""
    return stream_records(input_folder(config, key) / RECORDS)


def input_digest(config: ConfigDict, key: str) -> str:
    """Return the sha256 of records.jsonl in the finished folder `config.data.KEY`."""
    return file_digest(input_folder(config, key) / RECORDS)
