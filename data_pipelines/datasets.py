"""Converts conversations and interaction trees to TensorFlow data sets (TFDS), for training with other programs.

    python -m data_pipelines.datasets --config=configs/NAME.py

Reads the conversations in `config.data.conversations`, and the interaction trees in `config.data.shards` (split
`train`) and `config.eval.shards` (split `validation`). At least one of these three keys must be set. Writes the data
sets to the folder `config.data.datasets`. To read them, pass this folder to `tfds.data_source` as `data_dir` (see
`data_pipelines/tfds/builders.py`). If `config.beam` is set, an Apache Beam pipeline writes the data sets, with exactly
the same bytes.
"""

from data_pipelines.core.stage import Stage, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import contextlib
import io
import itertools
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_digest, input_folder
from data_pipelines.core.record_files import RECORDS
from data_pipelines.tfds.builders import (
    Conversations,
    Interactions,
    Shard,
    conversation_shards,
    fields_of,
    interaction_shards,
)
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.progress import Progress


def _interactions(config: ConfigDict) -> dict[str, Path]:
    """Return the folders of shards of interaction trees, keyed by split. Splits without a folder are left out."""
    folders = dict(train=config.data.shards, validation=config.eval.shards)
    return {split: Path(folder) for split, folder in folders.items() if folder}


def _identity(config: ConfigDict) -> dict[str, Any]:
    inputs = {f'interactions_{split}': Shards(folder).digest for split, folder in _interactions(config).items()}
    if config.data.conversations:
        inputs['conversations'] = input_digest(config, 'conversations')
    if not inputs:
        raise UserError(
            'config.data.conversations, config.data.shards and config.eval.shards are empty: set at least one of them'
        )
    return dict(inputs=inputs, versions=[str(each.VERSION) for each in (Conversations, Interactions)])


def _work(task: Task) -> dict[str, int]:
    config = task.config
    sets: dict[type, dict[str, list[Shard]]] = {}
    options: dict[type, dict[str, Any]] = {}
    if config.data.conversations:
        sets[Conversations] = conversation_shards(input_folder(config, 'conversations') / RECORDS)
    if folders := _interactions(config):
        fields = fields_of(folders.values())
        sets[Interactions] = {split: interaction_shards(each, fields=fields) for split, each in folders.items()}
        options[Interactions] = dict(fields=fields)
    counts: Counter = Counter()
    for builder, shards in sets.items():
        built = _build(builder, shards, task.folder, config.beam, **options.get(builder, {}))
        counts.update({f'{built.name}_{name}': split.num_examples for name, split in built.info.splits.items()})
    return task.write_manifest(counts)


def _build(
    builder: type, shards: dict[str, list[Shard]], folder: Path, beam: str, **more: Any
) -> tfds.core.DatasetBuilder:
    total, options = sum(map(len, shards.values())), tfds.download.DownloadConfig()
    with Progress(builder.__name__.lower(), total, unit='shards', enabled=not beam) as progress:
        if beam:
            options = _beam_options(beam)
        else:
            shards = _watched(shards, progress)
        built = builder(data_dir=folder, shards=shards, **more)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints the folder's temporary name
            built.download_and_prepare(download_config=options)
    shutil.rmtree(folder / 'downloads')  # TFDS leaves this folder empty
    for left in folder.rglob('*.shard_infos.json'):  # left by TFDS's Beam pipelines
        left.unlink()
    return built


def _beam_options(beam: str) -> tfds.download.DownloadConfig:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # an optional dependency
    except ImportError:
        raise UserError(
            "config.beam is set, but apache-beam is not installed: run `pip install -e '.[beam]'`"
        ) from None
    options = PipelineOptions(shlex.split(beam))
    runner = options.view_as(StandardOptions).runner or 'DirectRunner'  # TFDS uses Beam only if a runner is named
    return tfds.download.DownloadConfig(beam_options=options, beam_runner=runner)


def _watched(shards: Mapping[str, Sequence[Shard]], progress: Progress) -> dict[str, list[Shard]]:
    """Wrap shards so that reading a shard to its end updates the progress display."""
    done = itertools.count(1)

    def watched(shard: Shard) -> Shard:
        def read() -> Iterator[tuple[str, dict[str, Any]]]:
            yield from shard()
            progress.update(next(done))

        return read

    return {split: list(map(watched, each)) for split, each in shards.items()}


STAGE = Stage('datasets', 1, _work, 'data.datasets', _identity, forgetting='removed')

if __name__ == '__main__':
    STAGE.main()
