"""Join preferences into interaction trees, and write the trees as shards.

    python -m data_pipelines.shards --config=configs/NAME.py

Reads `config.data.pairs`: files, folders and Hugging Face hub data sets, separated by commas. Preferences may be in any
layout that `data_pipelines/preferences/layouts.py` reads. Preferences with the same user, persona, system message and
first message become one tree, and the trees are written to `config.data.shards`. Records that are not usable
preferences are skipped and counted by reason in the manifest. The program keeps all ids in memory, but the preferences
of only one tree at a time.
"""

from data_pipelines.core.stage import Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import itertools
import operator
import pickle
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.core.scratch import scratch_database
from data_pipelines.preferences.hindsight import hindsight_preference
from data_pipelines.preferences.layouts import Rated, one_sided_preference, parse_preferences, rated_preference
from data_pipelines.preferences.ratings import Ratings
from data_pipelines.raw.files import Files, files_of, form_of, json_records, parquet_records
from data_pipelines.teacher.prompts import prompt_digest
from rlhi_jax.config import listed
from rlhi_jax.data.grow import grow_trees, root
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import NONE, BadRecord, Interaction, Pair, Preference
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest, file_digest

# `train_prefs` and `test_prefs` of published data sets count as `train` and `test`.
_SPLIT = re.compile(r'(train|validation|test)(?![A-Za-z])')


def read_preferences(
    paths: Sequence[Path], counts: Counter, scratch: Path | None = None, *, feedback: str = 'paired'
) -> Iterator[Preference]:
    """Yield the usable preferences in files. Count every preference as kept or under the reason for dropping it.

    A preference without an id gets the id FILE:LINE, or N/FILE:LINE if several files have the same name. N is the
    position of the file in `paths`, counted from 1. Preferences are in the order of the files, but those made from
    several rated replies come last, because the replies to a prompt may be anywhere in the files.

    Args:
      paths: the files, in any form and layout (`data_pipelines/raw/files.py`, `data_pipelines/preferences/layouts.py`).
      counts: receives the counts.
      scratch: a temporary file for rated replies; None keeps the rated replies in memory.
      feedback: `config.data.feedback`.

    Raises:
      UserError: a file is damaged or has an unsupported form.
    """
    seen = set()
    with scratch_database(scratch) as database:
        ratings = Ratings(database)
        for made in itertools.chain(_as_read(paths, counts, ratings, feedback), _of_ratings(ratings, counts)):
            counts['lines_read'] += 1
            if isinstance(made, BadRecord):
                counts[f'dropped_{made.reason}'] += 1
            elif made.id in seen:
                counts['dropped_id_seen_before'] += 1
            else:
                seen.add(made.id)
                counts['pairs_kept'] += 1
                yield made


# Functions that make a preference from one rated reply, keyed by `config.data.feedback`; 'paired' needs two replies.
_OF_ONE_REPLY = dict(one_sided=one_sided_preference, hindsight=hindsight_preference)


def _as_read(
    paths: Sequence[Path], counts: Counter, ratings: Ratings, feedback: str
) -> Iterator[Preference | BadRecord]:
    """Yield the preferences in the files, and an error for each record that cannot be used.

    If `feedback` is 'paired', rated replies are not made into preferences here, but added to `ratings`.
    """
    for default_id, record in _records(paths):
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            parsed = parse_preferences(record, default_id, counts)
        except BadRecord as bad:
            yield bad
            continue
        for each in parsed:
            if isinstance(each, Rated):
                counts['rated_replies_read'] += 1
                if feedback == 'paired':
                    ratings.add(each, default_id)
                else:
                    yield _made(_OF_ONE_REPLY[feedback], each, default_id, counts)
            else:
                yield BadRecord('preference_without_a_follow_up') if feedback == 'hindsight' else each


def _of_ratings(ratings: Ratings, counts: Counter) -> Iterator[Preference | BadRecord]:
    """Yield a preference for each prompt with rated replies, or an error if they cannot form a preference."""
    for default_id, best, worst in ratings:
        yield _made(rated_preference, best, worst, default_id, counts)


def _made(make: Callable[..., Preference], *arguments: Any) -> Preference | BadRecord:
    try:
        return make(*arguments)
    except BadRecord as bad:
        return bad


def _records(paths: Sequence[Path]) -> Iterator[tuple[str, Any | BadRecord]]:
    """Yield the records of all files, each with a default id to use if the record states none."""
    names = Counter(path.name for path in paths)
    for index, path in enumerate(paths, start=1):
        name = path.name if names[path.name] == 1 else f'{index}/{path.name}'
        form = form_of(path, 'config.data.pairs')
        try:
            if form.layout == 'parquet':
                groups = range(pyarrow.parquet.read_metadata(path).num_row_groups)
                numbered = enumerate((record for group in groups for record in parquet_records(path, group)), start=1)
            else:
                numbered = json_records(path, form)
            for number, record in numbered:
                yield f'{name}:{number}', record
        except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
            raise UserError(f'config.data.pairs: {path} cannot be read ({one_line(error)}): fetch it again') from None


def _inputs(config: ConfigDict) -> list[Files]:
    return [_files(name, config.data.split) for name in listed(config, 'data.pairs')]


def _paths(inputs: Sequence[Files]) -> list[Path]:
    return [path for each in inputs for path in each.files]


def _files(name: str, split: str) -> Files:
    """Return the files to read for an entry of `config.data.pairs`, and the files beside them that are of other kinds.

    If a folder contains `SPLIT.jsonl` for the given split, only that file is read. Otherwise, files named after other
    splits are left out.
    """
    of_stage = Path(name) / f'{split}.jsonl'
    if of_stage.is_file():
        return Files([of_stage], ())
    found = files_of(name, 'config.data.pairs')
    if found.files == [Path(name)]:
        return found
    splits = {path: match[1] for path in found.files if (match := _SPLIT.match(path.name))}
    chosen = [path for path in found.files if splits.get(path, split) == split] if splits else found.files
    if not chosen:
        splits_found = ', '.join(sorted(set(splits.values())))
        raise UserError(
            f'config.data.pairs: {name} has no files for config.data.split={split}, only for {splits_found}: set '
            'config.data.split to one of these'
        )
    return Files(chosen, found.others)


def _identity(config: ConfigDict) -> dict[str, Any]:
    feedback = config.data.feedback
    return {
        'inputs': [[path.name, file_digest(path)] for path in _paths(_inputs(config))],
        'trees_per_shard': config.data.trees_per_shard,
        **({} if feedback == 'paired' else {'feedback': feedback}),
        **({'prompt': prompt_digest('hindsight')} if feedback == 'hindsight' else {}),
    }


def by_tree(preferences: Iterable[Preference], path: Path) -> Iterator[list[Preference]]:
    """Yield the preferences of one tree at a time, in the order in which trees first occur.

    `path` is a temporary file, which is removed after the last tree.
    """
    with scratch_database(path) as database:
        # `first` is the number of a tree's first preference.
        database.execute('CREATE TABLE trees (root TEXT PRIMARY KEY, first INTEGER)')
        database.execute('CREATE TABLE preferences (number INTEGER PRIMARY KEY, first INTEGER, pickled BLOB)')
        for number, preference in enumerate(preferences):
            name = digest(*root(preference))
            database.execute('INSERT OR IGNORE INTO trees VALUES (?, ?)', (name, number))
            (first,) = database.execute('SELECT first FROM trees WHERE root = ?', (name,)).fetchone()
            database.execute('INSERT INTO preferences VALUES (?, ?, ?)', (number, first, pickle.dumps(preference)))
        database.execute('CREATE INDEX together ON preferences (first, number)')
        grouped = database.execute('SELECT first, pickled FROM preferences ORDER BY first, number')
        for _, rows in itertools.groupby(grouped, key=operator.itemgetter(0)):
            yield [pickle.loads(pickled) for _, pickled in rows]


def _kinds(pair: Pair) -> Iterator[str]:
    """Yield the names of the manifest's counts that include a pair."""
    if pair.margin:
        yield 'pairs_with_margin'
    if NONE in (pair.chosen, pair.rejected):
        yield 'pairs_with_one_side'
    if pair.chosen_prompt != NONE:
        yield 'pairs_in_hindsight'


def _trees(task: Task, counts: Counter) -> Iterator[Interaction]:
    users, scratch = set(), work_folder(task.folder)
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o700)
    inputs = _inputs(task.config)
    for each in inputs:
        each.say_what_is_not_read('config.data.pairs')
    ratings, feedback = scratch / 'ratings.sqlite', task.config.data.feedback
    preferences = read_preferences(_paths(inputs), counts, ratings, feedback=feedback)
    for together in by_tree(preferences, scratch / 'preferences.sqlite'):
        (tree,) = grow_trees(together)
        users.add(tree.user_id)
        counts.update(trees=1, trees_with_persona=bool(tree.persona))
        counts.update(kind for pair in tree.pairs for kind in _kinds(pair))
        yield tree
    if not counts['trees']:
        raise UserError(
            f'config.data.pairs: {task.config.data.pairs} contains no usable preferences (records by outcome: '
            f'{dict(counts)}): set config.data.pairs to other files'
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
    version=3,
    work=_work,
    output='data.shards',
    identity=_identity,
    contents=lambda folder: dict(trees=len(Shards(folder))),
    digests=lambda folder: dict(shards=Shards(folder).digest),
    steps=(Step('pairs', ('lines_read',)),),
    shown=('trees',),
)

if __name__ == '__main__':
    STAGE.main()
