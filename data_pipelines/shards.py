"""Join preferences from JSON lines into interaction trees, and write the trees as shards.

    python -m data_pipelines.shards --config=configs/NAME.py

Reads `config.data.pairs`: a comma-separated list of .jsonl files, .jsonl.gz files or folders of the stage `pairs`.
Preferences with the same user, persona, system message and first message become one tree. The trees are written to
`config.data.shards`. Lines that are not usable preferences are skipped and counted by reason in the manifest. Memory
contains the ids of all preferences, and the preferences of one tree at a time.
"""

import contextlib
import gzip
import itertools
import operator
import pickle
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.core.stage import Stage, Step, Task
from rlhi_jax.config import require
from rlhi_jax.data.grow import grow_trees, root
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import BadRecord, Interaction, Preference, parse_preference
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest


def read_preferences(paths: list[Path], counts: Counter) -> Iterator[Preference]:
    """Yield the usable preferences of all files in order. Count kept lines, and count dropped lines by reason.

    Blank lines are skipped. A preference without an id gets the id FILE:LINE, or N/FILE:LINE if several files have the
    same name. N is the position of the file in the list of inputs, counted from 1.

    Raises:
      UserError: a compressed file is damaged.
    """
    seen = set()
    names = Counter(path.name for path in paths)
    for index, path in enumerate(paths, start=1):
        name = path.name if names[path.name] == 1 else f'{index}/{path.name}'
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
    except (EOFError, OSError, zlib.error) as error:  # raised by a damaged .gz
        raise UserError(
            f'config.data.pairs: {path} cannot be read ({error}): download or create the file again'
        ) from None


def _inputs(config: ConfigDict) -> list[Path]:
    require(config, 'data.pairs')
    paths = [Path(name) for name in config.data.pairs.split(',')]
    paths = [path / f'{config.data.split}.jsonl' if path.is_dir() else path for path in paths]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f'config.data.pairs: {path} does not exist or is not a file: set the key to preference JSONL files, '
                'separated by commas'
            )
    return paths


def _identity(config: ConfigDict) -> dict[str, Any]:
    return {
        'inputs': [[path.name, file_digest(path)] for path in _inputs(config)],
        'trees_per_shard': config.data.trees_per_shard,
    }


def by_tree(preferences: Iterable[Preference], path: Path) -> Iterator[list[Preference]]:
    """Yield the preferences of one tree at a time, in the order in which trees first occur.

    `path` is a scratch file, which is removed at the end.
    """
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute('PRAGMA journal_mode = OFF')  # an interrupted run starts over
        file.execute('PRAGMA synchronous = OFF')
        # `first` is the number of a tree's first preference.
        file.execute('CREATE TABLE trees (root TEXT PRIMARY KEY, first INTEGER)')
        file.execute('CREATE TABLE preferences (number INTEGER PRIMARY KEY, first INTEGER, pickled BLOB)')
        for number, preference in enumerate(preferences):
            name = digest(*root(preference))
            file.execute('INSERT OR IGNORE INTO trees VALUES (?, ?)', (name, number))
            (first,) = file.execute('SELECT first FROM trees WHERE root = ?', (name,)).fetchone()
            file.execute('INSERT INTO preferences VALUES (?, ?, ?)', (number, first, pickle.dumps(preference)))
        file.execute('CREATE INDEX together ON preferences (first, number)')
        grouped = file.execute('SELECT first, pickled FROM preferences ORDER BY first, number')
        for _, rows in itertools.groupby(grouped, key=operator.itemgetter(0)):
            yield [pickle.loads(pickled) for _, pickled in rows]
    path.unlink()


def _trees(task: Task, counts: Counter) -> Iterator[Interaction]:
    users, scratch = set(), work_folder(task.folder)
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o700)
    for preferences in by_tree(read_preferences(_inputs(task.config), counts), scratch / 'preferences.sqlite'):
        (tree,) = grow_trees(preferences)
        users.add(tree.user_id)
        counts.update(trees=1, trees_with_persona=bool(tree.persona))
        yield tree
    if not counts['trees']:
        raise UserError(
            f'config.data.pairs: no usable preferences in {task.config.data.pairs} (counts: {dict(counts)}): set '
            'the key to other files'
        )
    counts['users'] = len(users - {''})


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter()
    write_shards(
        _trees(task, counts),
        task.folder,
        trees_per_shard=task.config.data.trees_per_shard,
        manifest=task.manifest(counts),
    )
    return dict(sorted(counts.items()))


STAGE = Stage(
    name='shards',
    version=1,
    work=_work,
    output='data.shards',
    identity=_identity,
    contents=lambda folder: dict(trees=len(Shards(folder))),
    digests=lambda folder: dict(shards=Shards(folder).digest),
    steps=(Step('pairs', ('lines_read',)),),
)

if __name__ == '__main__':
    STAGE.main()
