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

import dataclasses
import itertools
import operator
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.core.scratch import scratch_database
from data_pipelines.preferences.controls import controlled, controls_identity
from data_pipelines.preferences.files import preference_files, read_preferences
from data_pipelines.raw.files import Files
from data_pipelines.teacher.prompts import prompt_digest
from rlhi_jax.config import listed
from rlhi_jax.data.grow import grow_trees, root
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import NONE, Interaction, Pair, Preference
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest


def _inputs(config: ConfigDict) -> list[Files]:
    return [preference_files(name, config.data.split) for name in listed(config, 'data.pairs')]


def _paths(inputs: Sequence[Files]) -> list[Path]:
    return [path for each in inputs for path in each.files]


def _identity(config: ConfigDict) -> dict[str, Any]:
    feedback, ties = config.data.feedback, config.data.ties
    return {
        'inputs': [[path.name, file_digest(path)] for path in _paths(_inputs(config))],
        'trees_per_shard': config.data.trees_per_shard,
        **({} if feedback == 'paired' else {'feedback': feedback}),
        **({} if ties == 'drop' else {'ties': ties}),
        **({'prompt': prompt_digest('hindsight')} if feedback == 'hindsight' else {}),
        **controls_identity(config),
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
    if pair.rejected == NONE:
        yield 'pairs_with_chosen_alone'
    if pair.chosen_prompt != NONE:
        yield 'pairs_in_hindsight'
    if pair.tied:
        yield 'pairs_tied'


def _trees(task: Task, counts: Counter) -> Iterator[Interaction]:
    users, scratch = set(), work_folder(task.folder)
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o700)
    inputs = _inputs(task.config)
    for each in inputs:
        each.say_what_is_not_read('config.data.pairs')
    ratings, feedback = scratch / 'ratings.sqlite', task.config.data.feedback
    keep_ties = task.config.data.ties == 'keep'
    drops_rejected = feedback == 'chosen'
    how = dict(feedback='paired' if drops_rejected else feedback, keep_ties=keep_ties)

    def read(counts: Counter) -> Iterator[Preference]:
        return read_preferences(_paths(inputs), counts, ratings, **how)

    preferences = controlled(read, task.config)(counts)
    if drops_rejected:
        preferences = (dataclasses.replace(preference, rejected=()) for preference in preferences)
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
