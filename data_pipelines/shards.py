"""Preference JSONL → interaction shards.

    python -m data_pipelines.shards --config=configs/NAME.py

Reads `config.data.pairs` (a file, or several joined by commas; .jsonl or .jsonl.gz), grows trees from whatever openings
the preferences share, and writes `config.data.shards`. Lines that cannot be used are skipped and counted by reason in
the manifest.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ml_collections import ConfigDict

from data_pipelines.stage import Stage, Task
from rlhi_jax.config import require
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.shards import write_shards
from rlhi_jax.data.tree import BadRecord, Preference, parse_preference
from rlhi_jax.errors import UserError
from rlhi_jax.files import file_digest


def read_preferences(paths: list[Path], counts: Counter) -> Iterator[Preference]:
    """Usable preferences in order; every line is counted, as kept or by the reason it was dropped for.

    Blank lines are no records and are passed over. A preference without an id gets `FILE:LINE`, where files that share
    a name are told apart by their place among the inputs (`2/FILE:LINE`).
    """
    seen = set()
    shared_names = Counter(path.name for path in paths)
    for place, path in enumerate(paths, start=1):
        name = path.name if shared_names[path.name] == 1 else f'{place}/{path.name}'
        with gzip.open(path, 'rb') if path.suffix == '.gz' else open(path, 'rb') as file:
            for number, line in enumerate(_lines(file, path), start=1):
                if not line.strip():
                    continue
                counts['lines_read'] += 1
                try:
                    preference = parse_preference(line, f'{name}:{number}')
                    if preference.id in seen:
                        raise BadRecord('id_seen_before')
                except BadRecord as bad:
                    counts[f'dropped_{bad.reason}'] += 1
                    continue
                seen.add(preference.id)
                counts['pairs_kept'] += 1
                yield preference


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, OSError, zlib.error) as error:  # what a damaged .gz raises
        raise UserError(f'config.data.pairs: {path} cannot be read ({error}): fetch or write it again') from None


def _inputs(config: ConfigDict) -> list[Path]:
    require(config, 'data.pairs')
    paths = [Path(name) for name in config.data.pairs.split(',')]
    paths = [path / f'{config.data.split}.jsonl' if path.is_dir() else path for path in paths]
    for path in paths:
        if not path.is_file():
            raise UserError(f'config.data.pairs: {path} does not exist or is no file: name preference JSONL')
    return paths


def _identity(config: ConfigDict) -> dict[str, Any]:
    return {
        'inputs': [[path.name, file_digest(path)] for path in _inputs(config)],
        'trees_per_shard': config.data.trees_per_shard,
    }


def _work(task: Task) -> dict[str, int]:
    config = task.config
    counts: Counter = Counter()
    trees = grow_trees(read_preferences(_inputs(config), counts))
    if not trees:
        raise UserError(f'config.data.pairs: no usable preference in {config.data.pairs} (counts: {dict(counts)})')
    counts['trees'] = len(trees)
    counts['users'] = len({tree.user_id for tree in trees})
    counts['trees_with_persona'] = sum(bool(tree.persona) for tree in trees)
    manifest = {'stage': 'shards', 'made_from': task.identity, 'counts': dict(sorted(counts.items()))}
    write_shards(trees, task.folder, trees_per_shard=config.data.trees_per_shard, manifest=manifest)
    return manifest['counts']


STAGE = Stage('shards', _work, 'data.shards', _identity)

if __name__ == '__main__':
    STAGE.main()
