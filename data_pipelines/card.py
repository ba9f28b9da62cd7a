"""What stages left on disk → a data card: what the data are, what was dropped and why, and what is in the pairs.

    python -m data_pipelines.card --config=configs/NAME.py

Reads the folders of stages that `config.data` names, several of `pairs`, `shards` and `rows` joined by commas; stages
that were not run are left out, and named. Writes `config.data.card`: card.md to read and card.json with the same. All
is counted from the records, line by line, and held against the counts that the stages kept.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.records import SPLITS
from data_pipelines.core.stage import RECORDS, Record, Stage, Task, stream_records
from data_pipelines.persona.store import CLAIMS, USERS
from data_pipelines.preferences.reading import pairs_to_read
from data_pipelines.reports.card_text import markdown
from data_pipelines.reports.statistics import (
    of_candidates,
    of_conversations,
    of_follow_ups,
    of_pairs,
    of_personas,
    of_rewrites,
)
from rlhi_jax.data.plan import load_plan
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest, read_json, write_bytes, write_json
from rlhi_jax.io.progress import Progress

# The files of each stage, and the count that the number of their lines is held against; 'kept' is all that it kept.
FILES: dict[str, dict[str, str]] = dict(
    conversations={RECORDS: 'kept'},
    follow_ups={RECORDS: 'kept'},
    personas={CLAIMS: 'kept', USERS: 'users', RECORDS: 'turns'},
    rewrites={RECORDS: 'kept'},
    candidates={RECORDS: 'kept'},
    pairs={f'{split}.jsonl': 'kept' for split in SPLITS},
    shards={},
    rows={},
)


class Folder(NamedTuple):
    """A stage's finished folder; `name` is its `kind`, a key of `config.data`, unless there are several of the kind."""

    kind: str
    name: str
    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / 'manifest.json', 'run its stage again', fields=('counts', 'made_from'))

    @property
    def records(self) -> Iterator[Record]:
        names = FILES['pairs'] if self.kind == 'pairs' else (RECORDS,)
        return (record for name in names for record in stream_records(self.path / name))


class Step(NamedTuple):
    """What a stage counts in one unit: how many it read (no key: it does not say), and the prefixes of what it drops.

    A count belongs to the step with the longest prefix that fits.
    """

    unit: str
    read: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ('dropped_',)


STEPS = dict(
    conversations=(Step('records', ('records_read',)),),
    follow_ups=(Step('turns after a reply', ('turns_read',)),),
    personas=(Step('remarks', ('remarks',), ('dropped_', 'deleted')),),
    rewrites=(
        Step('follow-ups', ('follow_ups_read',)),
        Step('rewrites drawn', ('rewrites_drawn',), ('dropped_rewrite_',)),
    ),
    candidates=(
        Step('prompts', ('prompts_read',)),
        Step('replies', (), ('dropped_replies_', 'dropped_empty_replies')),
    ),
    pairs=(Step('rewrites and prompts', ('rewrites_read', 'candidates_read')),),
    shards=(Step('pairs', ('lines_read',)),),
    rows=(Step('pairs', ('pairs_read',)),),
)


SEVERAL = ('pairs', 'shards', 'rows')  # kinds of which the config may name several folders, joined by commas


def folders(config: ConfigDict) -> tuple[list[Folder], list[str]]:
    """The finished folders that the config names, in the order of stages, and the names of those that are not there.

    Several folders of a kind are called by their paths below the folder that holds all such.
    """
    found, left_out = [], []
    paths = {kind: config.data[kind].split(',') if kind in SEVERAL else [config.data[kind]] for kind in FILES}
    many = [os.path.abspath(path) for several in paths.values() if len(several) > 1 for path in several]
    above = os.path.commonpath(many) if many else ''
    for kind in FILES:
        for path in paths[kind]:
            name = os.path.relpath(path, above) if len(paths[kind]) > 1 else kind
            if path and (Path(path) / 'manifest.json').exists():
                found.append(Folder(kind, name, Path(path)))
            else:
                left_out.append(name)
    return found, left_out


def digests(folder: Folder) -> dict[str, str]:
    """Identifies what the card is made of: the sha256 of a folder's files, and of its shards as row plans know it."""
    found = {name: file_digest(folder.path / name) for name in (*FILES[folder.kind], 'manifest.json')}
    return found | (dict(shards=Shards(folder.path).digest) if folder.kind == 'shards' else {})


SECTIONS = dict(
    conversations=of_conversations,
    follow_ups=of_follow_ups,
    personas=of_personas,
    rewrites=of_rewrites,
    candidates=of_candidates,
    pairs=of_pairs,
)


def _is_kept(key: str) -> bool:
    """Whether a count is of what a stage kept, in the unit of what it read."""
    return key.startswith('kept_') or key.endswith('_kept') or key == 'claims'


def on_disk(folder: Folder) -> Counter:
    """How many of what a stage counted its folder holds, or held before users had them removed, by the count's name."""
    found, gone = Counter(), forgotten(folder)
    for name, count in FILES[folder.kind].items():
        with open(folder.path / name, 'rb') as file:
            found[count] += sum(1 for _ in file) + gone.get(name, 0)
    if folder.kind == 'shards':
        found['trees'] = len(Shards(folder.path)) + gone.get('trees', 0)
    elif folder.kind == 'rows':
        plan, _ = load_plan(folder.path)
        found.update(kept=len(plan.pair_names), rows=len(plan.rows))
    return found


def steps(folder: Folder) -> list[dict[str, Any]]:
    """What a stage read, kept and dropped by reason, and whether that adds up.

    It does if its folder holds what it counted, too. None: it does not say what it read.
    """
    counts = folder.manifest['counts']
    known = [step for step in STEPS[folder.kind] if not step.read or any(key in counts for key in step.read)]
    fits = {prefix: step for step in known for prefix in step.dropped}
    dropped: dict[str, dict[str, int]] = {step.unit: {} for step in known}
    for key in counts:
        if prefixes := [prefix for prefix in fits if key.startswith(prefix)]:
            dropped[fits[max(prefixes, key=len)].unit][key.removeprefix('dropped_')] = counts[key]
    kept = {key: number for key, number in counts.items() if _is_kept(key)}
    told = counts | dict(kept=sum(kept.values()))
    held = all(told.get(name, 0) == number for name, number in on_disk(folder).items())
    found = []
    for step in known:
        read = sum(counts.get(key, 0) for key in step.read) if step.read else None
        adds_up = None if read is None else held and read == told['kept'] + sum(dropped[step.unit].values())
        own = {} if read is None else kept
        found.append(dict(unit=step.unit, read=read, kept=own, dropped=dropped[step.unit], adds_up=adds_up))
    return found


def forgotten(folder: Folder) -> dict[str, int]:
    """How many records, by file, or trees users have had removed from a folder since its stage counted them."""
    return folder.manifest.get('forgotten', {})


def others(folder: Folder) -> dict[str, int]:
    """What a stage counts beside what it read, kept and dropped; and what users have had removed since."""
    read = {key for step in STEPS[folder.kind] for key in step.read}
    edges = ('teacher_', *(prefix for step in STEPS[folder.kind] for prefix in step.dropped))
    counts = folder.manifest['counts'].items()
    gone = {f'forgotten since, of {name}': number for name, number in forgotten(folder).items()}
    return gone | {key: n for key, n in counts if key not in read and not key.startswith(edges) and not _is_kept(key)}


def teacher(found: list[Folder]) -> dict[str, Any] | None:
    """What a teacher behind an endpoint cost in all stages, and per accepted pair; None if there was none.

    Money is in the currency of `config.teacher.price_in`; a pair that is in several folders counts once.
    """
    counts = [folder.manifest['counts'] for folder in found]
    if not any('teacher_tokens_in' in own for own in counts):
        return None
    totals = {
        name: sum(own.get(f'teacher_{name}', 0) for own in counts)
        for name in ('tokens_in', 'tokens_out', 'cost_millionths')
    }
    pairs = len({pair['id'] for folder in found if folder.kind == 'pairs' for pair in folder.records})
    each = {name: total / pairs for name, total in totals.items()} if pairs else None
    return totals | dict(pairs=pairs, per_pair=each)


def describe(found: list[Folder], left_out: list[str], inputs: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The card of some folders, whose `digests` are `inputs`, as JSON holds it: a function of the folders alone."""
    card: dict[str, Any] = dict(inputs=inputs, left_out=left_out, made_of={}, funnel={}, sections={}, examples={})
    with Progress('card', len(found), unit='folders') as progress:
        for number, folder in enumerate(found, start=1):
            if folder.kind in SECTIONS:
                section = SECTIONS[folder.kind](folder.records, folder.manifest)
                card['sections'][folder.name] = dict(section, kind=folder.kind)
            if folder.kind == 'pairs':
                card['examples'][folder.name] = pairs_to_read(folder.path / 'train.jsonl')
            card['funnel'][folder.name] = dict(steps=steps(folder), others=others(folder))
            told = json.dumps(folder.manifest['made_from'])
            card['made_of'][folder.name] = [
                name for name, files in inputs.items() if name != folder.name and any(d in told for d in files.values())
            ]
            progress.update(number)
    return card | dict(teacher=teacher(found))


def _identity(config: ConfigDict) -> dict[str, Any]:
    found, left_out = folders(config)
    if not found:
        raise UserError(f'config.data names no finished folder of a stage: set one of data.{", data.".join(FILES)}')
    return dict(inputs={folder.name: digests(folder) for folder in found}, left_out=left_out)


def _work(task: Task) -> dict[str, int]:
    card = describe(*folders(task.config), task.identity['inputs'])
    write_json(task.folder / 'card.json', card)
    write_bytes(task.folder / 'card.md', markdown(card).encode())
    checked = [step['adds_up'] for own in card['funnel'].values() for step in own['steps']]
    counts = Counter(folders=len(card['funnel']), adding_up=checked.count(True), not_adding_up=checked.count(False))
    return task.write_manifest(counts)


STAGE = Stage('card', 1, _work, 'data.card', _identity)

if __name__ == '__main__':
    STAGE.main()
