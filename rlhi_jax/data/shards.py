"""Interaction shards: ArrayRecord files of trees stored as text, and a manifest with each file's digest."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
from array_record.python.array_record_module import ArrayRecordWriter

from rlhi_jax.data.tree import Interaction
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, read_json, write_json

MANIFEST = 'manifest.json'
_REMEDY = 'make the shards again with `python -m data_pipelines.shards`'


def write_shards(trees: Iterable[Interaction], folder: Path, *, trees_per_shard: int, manifest: dict[str, Any]) -> None:
    """Write trees to `folder`, then the manifest with each file's digest.

    The caller renames the folder into place.
    """
    shards, trees = [], iter(trees)
    for number in itertools.count():
        if (first := next(trees, None)) is None:
            break
        path, count = folder / f'interactions-{number:05d}.array_record', 0
        writer = ArrayRecordWriter(str(path), 'group_size:1')  # one record per group: cheap random access
        for tree in itertools.chain([first], itertools.islice(trees, trees_per_shard - 1)):
            writer.write(tree.to_bytes())
            count += 1
        writer.close()
        shards.append(dict(file=path.name, trees=count, bytes=path.stat().st_size, sha256=file_digest(path)))
    write_json(folder / MANIFEST, {**manifest, 'shards': shards})


class Shards:
    """Random access to the trees in a folder of shards.

    Attributes:
      digest: digest of the shards' contents; it does not depend on the folder's location.
      manifest: the manifest, as written by the stage that made the shards.

    Raises:
      UserError: the folder, its manifest or a shard is missing; a shard does not match the manifest; or there are no
        trees.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / MANIFEST, _REMEDY, fields=('shards',))
        entries = self.manifest['shards']
        for entry in entries:
            self._verify(entry)
        if not sum(entry['trees'] for entry in entries):
            raise UserError(
                f'{self.folder} contains no interactions (see the drop counts in its {MANIFEST}): {_REMEDY}'
            )
        self.digest = digest([entry['sha256'] for entry in entries])
        self._source = grain.sources.ArrayRecordDataSource([str(self.folder / entry['file']) for entry in entries])

    def _verify(self, entry: dict[str, Any]) -> None:
        path = self.folder / entry['file']
        if not path.exists():
            raise UserError(f'shard {path} is missing: {_REMEDY}')
        if path.stat().st_size != entry['bytes'] or file_digest(path) != entry['sha256']:
            raise UserError(f'shard {path} is corrupt (its contents do not match {MANIFEST}): {_REMEDY}')

    def count(self, name: str) -> int:
        """Return a count from the manifest, such as `pairs_with_margin`; 0 if the manifest does not have it."""
        return self.manifest.get('counts', {}).get(name, 0)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Interaction:
        return Interaction.from_bytes(self._source[index])


@dataclasses.dataclass(frozen=True)
class View:
    """Selected trees from a folder of shards, each edited when it is read, for example to replace the persona."""

    trees: Shards
    indices: Sequence[int]
    edit: Callable[[Interaction], Interaction]
    digest: str

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Interaction:
        return self.edit(self.trees[self.indices[index]])
