"""Users who are forgotten: whose a record is, and the runs that were trained on them."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines.core.stage import Record, as_line, stream_records
from data_pipelines.core.turns import conversation_of, turn_of
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.files import complete_lines, read_json, write_bytes, write_json
from rlhi_jax.models.checkpoints import weights_at

LOG, NOTE = 'examples.jsonl', 'trained_on_forgotten.json'  # in a run's folder
_USER = ('user_id', 'hashed_ip')  # where records, and raw ones, name who speaks
_REMEDY = 'remove the run'


@dataclasses.dataclass
class Forgotten:
    """Tells whether a record is of one of the users: by its user, or where it names none by what it is of.

    Attributes:
      users: who they are.
      conversations, records: ids of theirs.
      seen: those of the users of whom there are records.
    """

    users: frozenset[str]
    conversations: set[str] = dataclasses.field(default_factory=set)
    records: set[str] = dataclasses.field(default_factory=set)
    seen: set[str] = dataclasses.field(default_factory=set)

    def learn(self, record: Record, stage: str) -> None:
        """Note the ids that a record of theirs gives away."""
        found = {record[key] for key in _USER if key in record} & self.users
        if not found:
            return
        self.seen |= found
        self.records.update(record.get('pairs', ()))
        if isinstance(record.get('id'), str):
            (self.conversations if stage == 'ingest' else self.records).add(record['id'])
        if isinstance(record.get('conversation'), str):
            self.conversations.add(record['conversation'])

    def holds(self, record: Record) -> bool:
        if any(key in record for key in _USER):
            return any(record.get(key) in self.users for key in _USER)
        return self.named(str(record.get('id', '')))

    def named(self, name: str) -> bool:
        """Whether a turn, a claim or a pair is theirs, by its id."""
        return name in self.records or conversation_of(turn_of(name)) in self.conversations

    def corrected(self, correction: dict[str, str]) -> bool:
        """Whether a line of a file of corrections (see `personas.read_corrections`) is of one of them."""
        if user := correction.get('delete_user'):
            return user in self.users
        return self.named(correction.get('delete_claim') or correction['edit_claim'])


def records_of(folder: Path, stage: str) -> dict[str, Iterator[Record]]:
    """All that a stage's folder tells of users, by file; of shards the users and the pairs of trees."""
    if stage == 'shards':
        trees = Shards(folder)
        found = map(trees.__getitem__, range(len(trees)))
        return dict(trees=(dict(user_id=tree.user_id, pairs=[pair.id for pair in tree.pairs]) for tree in found))
    return {path.name: stream_records(path) for path in sorted(folder.glob('*.jsonl'))}


def clean_log(run: Path, theirs: Forgotten) -> None:
    """Take what is theirs out of a run's log, and a line that was broken off; its steps say how many pairs went."""
    lines = []
    for line in complete_lines(run / LOG):
        step = json.loads(line)
        left = [name for name in step['pairs'] if not theirs.named(name)]
        if gone := len(step['pairs']) - len(left):
            line = as_line(step | dict(pairs=left, forgotten=step.get('forgotten', 0) + gone))
        lines.append(line)
    cleaned = b''.join(lines)
    if (run / LOG).exists() and (run / LOG).read_bytes() != cleaned:
        write_bytes(run / LOG, cleaned)


def note(runs: Iterable[Path]) -> None:
    """Leave a note with runs whose log has lost pairs, and with those that began with the parameters of such a run."""
    lost = {run: [json.loads(line).get('forgotten', 0) for line in complete_lines(run / LOG)] for run in runs}
    began = {run: read_json(run / 'run.json', _REMEDY, fields=['model'])['model'] for run in lost}
    named: set[Path] = set()
    more = {run for run in lost if any(lost[run])} | set(noted(lost))
    while more:
        named |= more
        made = {
            weights_at(read_json(run / 'model.json', _REMEDY, fields=['weights'])['weights'], step)
            for run in more
            for step in range(1, len(lost[run]) + 1)
        }
        more = {run for run in lost if began[run] in made} - named
    for run in named:
        what = 'pairs of users who are forgotten, or a model that was trained on some'
        write_json(run / NOTE, dict(trained_on=what, pairs=sum(lost[run])))


def noted(runs: Iterable[Path]) -> list[Path]:
    return sorted(run for run in runs if (run / NOTE).exists())
