"""TFDS builders for conversations and interactions.

The stage `datasets` builds the data sets, as ArrayRecord files that `tfds.data_source` reads without TensorFlow.
Reading them requires no code from this project:

    trees = tfds.data_source('interactions', data_dir=DIR, split='train')

TFDS returns text as UTF-8 bytes and a list of messages as a dict of lists. `conversation` and `interaction` convert
such an example back to its original form.

The builders derive from ShardBasedBuilder, which streams examples, preserves their order, and writes the same bytes
with or without Beam. GeneratorBasedBuilder would sort each split in memory or, above 1 GB, on disk with TensorFlow's
file API (tensorflow_datasets/core/shuffle.py). With Beam, TFDS rewrites all earlier splits for each later split, so the
smallest split comes first.
"""

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.core.records import Conversation
from rlhi_jax.data.shards import Shards
from rlhi_jax.data.tree import Interaction, Message, Pair
from rlhi_jax.io.errors import UserError

PER_SHARD = 5000  # conversations per shard
_TEXTS = ('began', 'cluster', 'ended', 'id', 'language', 'system', 'user_id')

Example = dict[str, Any]
Shard = Callable[[], Iterator[tuple[str, Example]]]  # yields a shard's examples with their ids


def conversation_shards(path: Path) -> dict[str, list[Shard]]:
    """Return shards of the conversations in a file, keyed by split. Each split keeps the order of the file."""
    offsets_by_split: dict[str, list[int]] = defaultdict(list)
    with open(path, 'rb') as file:
        offset = 0
        for line in file:
            offsets_by_split[json.loads(line)['split']].append(offset)
            offset += len(line)
    return {
        split: [
            functools.partial(_conversations, str(path.absolute()), offsets[first : first + PER_SHARD])
            for first in range(0, len(offsets), PER_SHARD)
        ]
        for split, offsets in offsets_by_split.items()
    }


def _conversations(path: str, offsets: Sequence[int]) -> Iterator[tuple[str, Example]]:
    with open(path, 'rb') as file:
        for offset in offsets:
            file.seek(offset)
            record = json.loads(file.readline())
            yield record['id'], {name: record[name] for name in (*_TEXTS, 'messages')}


def conversation(example: Example, split: str) -> Conversation:
    """Convert a TFDS example back to the original conversation, which belongs to the given split."""
    texts = {name: _plain(example[name]) for name in _TEXTS}
    return Conversation(split=split, messages=_rows(example['messages']), **texts)


# Fields that only some pairs have, and how the shards' manifest names the number of pairs with each field.
OPTIONAL_FIELDS = dict(margin='pairs_with_margin', chosen_prompt='pairs_in_hindsight', tied='pairs_tied')


def fields_of(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return the optional fields that occur in at least one pair in the given folders of interactions.

    Raises:
      UserError: `Shards` cannot read a folder.
    """
    opened = list(map(Shards, folders))
    return tuple(name for name, count in OPTIONAL_FIELDS.items() if any(shards.count(count) for shards in opened))


def interaction_shards(folder: Path, *, fields: tuple[str, ...]) -> list[Shard]:
    """Return one TFDS shard for each shard in a folder of interactions.

    Args:
      folder: the folder of interactions.
      fields: the optional fields to keep in pairs.

    Raises:
      UserError: `Shards` cannot read the folder.
    """
    entries = Shards(folder).manifest['shards']
    return [functools.partial(_interactions, str(folder.absolute() / entry['file']), fields) for entry in entries]


def _interactions(path: str, fields: tuple[str, ...]) -> Iterator[tuple[str, Example]]:
    source = grain.sources.ArrayRecordDataSource([path])
    for index in range(len(source)):
        tree = dataclasses.asdict(Interaction.from_bytes(source[index]))
        for pair in tree['pairs']:
            for name in OPTIONAL_FIELDS.keys() - set(fields):
                del pair[name]
        yield tree['id'], tree | dict(messages=list(tree['messages']), pairs=list(tree['pairs']))


def interaction(example: Example) -> Interaction:
    """Convert a TFDS example back to the original interaction."""
    texts = {name: _plain(example[name]) for name in ('id', 'user_id', 'persona', 'system')}
    messages = tuple(Message(**row) for row in _rows(example['messages']))
    return Interaction(messages=messages, pairs=tuple(Pair(**row) for row in _rows(example['pairs'])), **texts)


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, map(_plain, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()


class _InOrder(ExampleWriter):
    """A writer that sorts each example's features by name; TFDS's own writer does not guarantee their order."""

    def write(self, path, examples):
        def sorted_examples():
            for key, data in examples:
                yield key, tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)

        return super().write(path, sorted_examples())


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A builder for a data set in ArrayRecord files.

    Attributes:
      shards: the shards, keyed by split; needed to build the data set, but not to read it.
    """

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, shards: Mapping[str, Sequence[Shard]] | None = None, **options: Any):
        super().__init__(**dict(file_format='array_record') | options)
        self.shards = shards

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Shard]]:
        if not self.shards:
            raise UserError(
                f'{self.data_dir} does not contain the data set: build it with `python -m data_pipelines.datasets`'
            )
        return dict(sorted(self.shards.items(), key=lambda split: (len(split[1]), split[0])))

    def _example_writer(self) -> ExampleWriter:
        return _InOrder(self.info.file_format)

    def _described(self, description: str, features: dict[str, Any]) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description=description, features=features, disable_shuffling=True)


def _text(*names: str) -> dict[str, Any]:
    return {name: tfds.features.Text() for name in names}


class Conversations(_Builder):
    """Conversations as `ingest` stores them."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = _text(*_TEXTS) | dict(messages=tfds.features.Sequence(_text('role', 'content')))
        return self._described('Conversations, grouped by user and sorted by time for each user.', features)


class Interactions(_Builder, skip_registration=True):  # readers take the features from the data set, not from here
    """Interaction trees. Each has a persona, the messages of all branches of a conversation, and pairs of replies.

    Attributes:
      fields: the optional fields of the pairs; needed to build the data set, but not to read it.
    """

    def __init__(self, *, fields: tuple[str, ...] = (), **options: Any):
        self.fields = fields
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        number = tfds.features.Tensor(shape=(), dtype=np.float64, encoding='bytes')  # a plain float would be float32
        kinds = dict(margin=number, chosen_prompt=np.int32, tied=np.bool_)
        optional = {name: kind for name, kind in kinds.items() if name in self.fields}
        features = _text('id', 'user_id', 'persona', 'system') | dict(
            messages=tfds.features.Sequence(_text('role', 'content') | dict(parent=np.int32)),
            pairs=tfds.features.Sequence(
                _text('id') | dict(prompt=np.int32, chosen=np.int32, rejected=np.int32, weight=number) | optional
            ),
        )
        return self._described('Message trees with parent indices, and pairs of chosen and rejected replies.', features)
