"""Finds the records of forgotten users, and the training runs that used these records."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.core.record_files import as_line, stream_records
from data_pipelines.core.records import Record
from data_pipelines.core.turns import conversation_of, is_strangers, turn_of
from rlhi_jax.data.grow import grow_trees, preferences_of
from rlhi_jax.data.shards import Shards
from rlhi_jax.data.tree import Interaction
from rlhi_jax.io.files import complete_lines, read_json, write_bytes, write_json
from rlhi_jax.models.checkpoints import weights_at

LOG, NOTE = 'examples.jsonl', 'trained_on_forgotten.json'  # in a run's folder
_USER = ('user_id', 'hashed_ip')  # the user's id: `user_id` in records, `hashed_ip` in raw records
_OTHER = 'stranger_id'  # another user whose words are in the record
_REMEDY = 'remove the run'


@dataclasses.dataclass
class Forgotten:
    """The ids of forgotten users and of their records, for finding all records that belong to these users.

    A record with a user field is recognized by that field, and any other record by its id.

    Attributes:
      users: the ids of the forgotten users.
      conversations: the ids of these users' conversations.
      records: the ids of these users' records other than conversations.
      seen: the ids of the forgotten users whose records have been found.
    """

    users: frozenset[str]
    conversations: set[str] = dataclasses.field(default_factory=set)
    records: set[str] = dataclasses.field(default_factory=set)
    seen: set[str] = dataclasses.field(default_factory=set)

    @property
    def authors(self) -> frozenset[str]:
        """The author ids that the teacher's cache may have stored for the texts of these users.

        They include conversation ids, because an author's id is the conversation id if the user is unknown.
        """
        return self.users | self.conversations

    def learn(self, record: Record, stage: str) -> None:
        """Remember the ids in a record if the record belongs to a forgotten user.

        Args:
          record: a record from a stage, or a raw record.
          stage: the stage that wrote the record. The ids of records from 'ingest' are conversation ids.
        """
        owners = {record[key] for key in _USER if key in record} & self.users
        users = owners | ({record.get(_OTHER)} & self.users)
        if not users:
            return
        self.seen |= users
        self.records.update(record.get('pairs', ()))
        if isinstance(record.get('id'), str):
            (self.conversations if stage == 'ingest' else self.records).add(record['id'])
        in_anothers = stage == 'pairs' and is_strangers(str(record.get('id')))
        if owners and isinstance(record.get('conversation'), str) and not in_anothers:
            self.conversations.add(record['conversation'])

    def has(self, record: Record) -> bool:
        """Whether a record belongs to a forgotten user, or contains the words of one."""
        if any(key in record for key in _USER):
            return any(record.get(key) in self.users for key in (*_USER, _OTHER))
        return self.has_id(str(record.get('id', '')))

    def rest_of(self, tree: Interaction) -> Interaction | None:
        """Return a tree without the pairs that contain forgotten users' words, or None if no pair is left."""
        if tree.user_id in self.users:
            return None
        if self.records.isdisjoint(pair.id for pair in tree.pairs):
            return tree
        left = [preference for preference in preferences_of(tree) if preference.id not in self.records]
        return next(iter(grow_trees(left)), None)

    def has_id(self, name: str) -> bool:
        """Whether the turn, claim or pair with this id belongs to a forgotten user."""
        return name in self.records or conversation_of(turn_of(name)) in self.conversations

    def has_correction(self, correction: dict[str, str]) -> bool:
        """Whether a line of a corrections file (`data_pipelines/persona/corrections.py`) is about a forgotten user."""
        if user := correction.get('delete_user'):
            return user in self.users
        return self.has_id(correction.get('delete_claim') or correction['edit_claim'])


def records_of(folder: Path, stage: str) -> dict[str, Iterator[Record]]:
    """Return the records in a stage's folder, keyed by file name.

    For shards, return the user id and pair ids of each tree, under the key 'trees'.
    """
    if stage == 'shards':
        return dict(
            trees=(dict(user_id=tree.user_id, pairs=[pair.id for pair in tree.pairs]) for tree in trees_of(folder))
        )
    return {path.name: stream_records(path) for path in sorted(folder.glob('*.jsonl'))}


def counts_of(folder: Path, stage: str, forgotten: Forgotten) -> Counter:
    """Count forgotten users' records in each file; files without such records are left out.

    For shards, count the trees that are removed, under 'trees', and the pairs that are removed from other trees.
    """
    counts: Counter = Counter()
    if stage == 'shards':
        for tree in trees_of(folder):
            rest = forgotten.rest_of(tree)
            counts.update(dict(pairs=len(tree.pairs) - len(rest.pairs)) if rest else dict(trees=1))
    else:
        for name, records in records_of(folder, stage).items():
            counts[name] = sum(map(forgotten.has, records))
    return +counts


def trees_of(folder: Path) -> Iterator[Interaction]:
    """Yield the trees in a folder of shards."""
    shards = Shards(folder)
    return map(shards.__getitem__, range(len(shards)))


def find_in_rounds(runs: Iterable[Path], forgotten: Forgotten) -> dict[Path, int]:
    """Return how many answers and pairs of forgotten users are in each file of online runs (`rlhi_jax.online`).

    The ids of these answers and pairs are remembered.
    """
    paths = [path for run in runs for path in sorted(run.glob('rounds/*/*.jsonl'))]
    for record in itertools.chain.from_iterable(map(_round_records, paths)):
        forgotten.learn(record, 'pairs')
    return {path: sum(map(forgotten.has, _round_records(path))) for path in paths}


def clean_round(path: Path, forgotten: Forgotten) -> None:
    """Remove forgotten users' answers or pairs from a file of an online run, and an incomplete last line."""
    cleaned = b''.join(as_line(record) for record in _round_records(path) if not forgotten.has(record))
    if path.read_bytes() != cleaned:
        write_bytes(path, cleaned)


def _round_records(path: Path) -> Iterator[Record]:
    return map(json.loads, complete_lines(path))


def clean_log(run: Path, forgotten: Forgotten) -> None:
    """Remove forgotten users' pairs from a run's log, and record in the log how many pairs each step has lost.

    An incomplete last line is removed, too.
    """
    lines = []
    for line in complete_lines(run / LOG):
        step = json.loads(line)
        pairs = [name for name in step['pairs'] if not forgotten.has_id(name)]
        if len(pairs) < len(step['pairs']):
            line = as_line(step | dict(pairs=pairs, forgotten=_lost(step, forgotten)))
        lines.append(line)
    cleaned = b''.join(lines)
    if (run / LOG).exists() and (run / LOG).read_bytes() != cleaned:
        write_bytes(run / LOG, cleaned)


def find_notes(runs: Iterable[Path], forgotten: Forgotten) -> dict[Path, int]:
    """Return the runs that were trained, directly or indirectly, on forgotten users' pairs.

    The result contains the runs whose logs contain or contained such pairs, and the runs that already have a note
    (`NOTE`). It also contains every run that started from the parameters of a run in the result. Each run is mapped to
    the number of such pairs in its log, including pairs that have been removed from the log.

    Raises:
      UserError: a run cannot be read.
    """
    lost = {run: [_lost(json.loads(line), forgotten) for line in complete_lines(run / LOG)] for run in runs}
    started_from = {run: read_json(run / 'run.json', _REMEDY, fields=['model'])['model'] for run in lost}
    to_note: set[Path] = set()
    more = {run for run in lost if any(lost[run])} | set(noted_runs(lost))
    while more:
        to_note |= more
        weights = {
            weights_at(read_json(run / 'model.json', _REMEDY, fields=['weights'])['weights'], step)
            for run in more
            for step in range(1, len(lost[run]) + 1)
        }
        more = {run for run in lost if started_from[run] in weights} - to_note
    return {run: sum(lost[run]) for run in to_note}


def _lost(step: Record, forgotten: Forgotten) -> int:
    """Return how many of a step's pairs belong to users who are forgotten now or were forgotten earlier."""
    return step.get('forgotten', 0) + sum(map(forgotten.has_id, step['pairs']))


def write_notes(notes: dict[Path, int]) -> None:
    """Write a note (`NOTE`) into the folder of each run in `notes`, the result of `find_notes`."""
    for run, pairs in notes.items():
        trained_on = 'pairs of forgotten users, or a model that was trained on such pairs'
        write_json(run / NOTE, dict(trained_on=trained_on, pairs=pairs))


def noted_runs(runs: Iterable[Path]) -> list[Path]:
    return sorted(run for run in runs if (run / NOTE).exists())
