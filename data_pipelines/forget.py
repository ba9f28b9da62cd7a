"""Removes users from everything that stages have written, and names the runs that were trained on them.

    python -m data_pipelines.forget --config=configs/NAME.py --user=ID [--user=ID …] [--workdir=DIR]

Works on all stages' folders at or below those that the config names. With --workdir it also works on everything in a
loop's folder, or in all loops below one folder. If a stage is writing one of these folders, the call is refused and
changes nothing. IDs are those in records (keys, if users are salted).

First the users are added to the list `config.ingest.opt_out`, which keeps them out of later ingests; everybody on that
list is forgotten. Then, if anything of theirs is there:

- Records, preferences, claims and shards are written again without them.
- Folders that mix users' texts or are cheap to make again are removed: row plans, data sets, cards and evaluations of
  simulated users. So are reports, the teacher's cache and unfinished work.
- Manifests are updated, so that finished stages stay up to date. They keep the counts of the original work, and add
  under `forgotten` how many records of each file were removed since.

Unless a cap on conversations, turns or prompts was reached, the remaining records are those that the stages would make
from data without these users.

Weights cannot forget. Runs that were trained on a forgotten user get a note, and so do runs that started from such a
run's parameters. Every call names them: remove them and train again. No file lists what was exported from them. Heads
of follow-ups contain no text, but were trained on the turns of everyone who was labelled then. Files that no stage
wrote (raw data, labels, preferences) are yours to clean.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.core.registry import stage_named
from data_pipelines.persona.corrections import read_corrections
from data_pipelines.privacy.forgotten import Forgotten, clean_log, noted_runs, records_of, write_notes
from data_pipelines.privacy.traces import Traces, find_traces, manifest_of, named_paths
from data_pipelines.privacy.user_keys import opt_out_with, write_opt_out
from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import (
    HeldFolder,
    digest,
    file_digest,
    locked,
    new_file,
    read_json,
    remove,
    settle,
    write_bytes,
    write_json,
)

UNDER_WAY = '.forgetting.json'


class Report(NamedTuple):
    """The outcome of a call.

    Attributes:
      removed: for each folder or file, how many records (by file), trees or lines were removed; {} for a whole folder.
      unknown: requested users of whom nothing was found.
      runs: runs that were trained on a forgotten user, now or earlier, or that started from such a run.
      heads: folders of all heads of follow-ups, whoever they were trained on.
    """

    removed: dict[Path, dict[str, int]]
    unknown: list[str]
    runs: list[Path]
    heads: list[Path]


class _State:
    """Knowledge about the forgotten users. It is on disk until the call is done, because cleaned folders have lost it.

    Attributes:
      resumed: whether an interrupted call has left its state.
      forgotten: the users, and the ids of their records.
      changed: a mapping from old digests of files to new ones.
    """

    def __init__(self, path: Path, users: frozenset[str]):
        self._path, self.resumed = path, path.exists()
        names = ('users', 'conversations', 'records', 'changed')
        left = read_json(path, 'remove it', fields=names) if self.resumed else dict.fromkeys(names, ())
        self.forgotten = Forgotten(
            users.union(left['users']), set(left['conversations']), set(left['records']), set(left['users'])
        )
        self.changed = dict(left['changed'])

    def write(self) -> None:
        ids = {name: sorted(getattr(self.forgotten, name)) for name in ('users', 'conversations', 'records')}
        write_json(self._path, dict(ids, changed=self.changed))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def updated(self, text: str) -> str:
        """A text with old digests replaced by new ones."""
        for old, new in self.changed.items():
            while new in self.changed:  # the file has changed again
                new = self.changed[new]
            text = text.replace(old, new)
        return text


class _Corrections(NamedTuple):
    """A corrections file without the forgotten users' lines: its bytes, digest ('' if empty) and removed lines."""

    left: bytes
    digest: str
    removed: int


class _Plan(NamedTuple):
    """What a call will remove.

    Attributes:
      manifests: of all finished folders.
      counts: by folder, how many records of each file belong to the users.
      whole: folders to remove as a whole.
      corrections: corrections files that lose lines.
    """

    manifests: dict[HeldFolder, dict[str, Any]]
    counts: dict[HeldFolder, Counter]
    whole: set[HeldFolder]
    corrections: dict[Path, _Corrections]

    def finds_anything(self) -> bool:
        return bool(self.corrections) or any(self.counts.values())


def forget(config: ConfigDict, users: frozenset[str], workdir: str | None) -> Report:
    """Remove users, and everybody else on the list `config.ingest.opt_out`; call again if it was interrupted.

    Raises:
      UserError: config.ingest.opt_out is empty, no folder is found, a file cannot be read, or a stage is writing one of
        the folders. Nothing has changed then.
    """
    if not config.ingest.opt_out:
        raise UserError('config.ingest.opt_out is empty: name the file that lists the users to keep out from now on')
    listed, traces = opt_out_with(config.ingest.opt_out, users), find_traces(config, workdir)
    above = Path(workdir) if workdir else next(path.parent for path in named_paths(config) if path.parent.is_dir())
    with contextlib.ExitStack() as stack:
        held = _hold(traces.outputs, stack)
        state = _State(above / UNDER_WAY, listed)
        for folder in held:
            settle(folder.path)
        plan = _make_plan(held, traces, state.forgotten)
        write_opt_out(config.ingest.opt_out, state.forgotten.users)
        removed = _remove(plan, state, config, traces) if state.resumed or plan.finds_anything() else {}
        _update_digests([folder.path for folder in plan.manifests], state)
        state.remove()
    unknown = sorted(users - state.forgotten.seen)
    return Report(removed, unknown, noted_runs(traces.runs), _heads(config, traces))


def _hold(folders: Iterable[Path], stack: contextlib.ExitStack) -> list[HeldFolder]:
    """Keep other processes from writing the folders until the stack is closed."""
    held = [stack.enter_context(HeldFolder(path)) for path in sorted(folders)]
    for folder in held:
        if folder.path.is_dir():  # another process may be putting it in place, or correcting it
            stack.callback(os.close, locked(folder.path))
    return held


def _make_plan(held: list[HeldFolder], traces: Traces, forgotten: Forgotten) -> _Plan:
    """Learn the users' ids from all folders, then look for their records."""
    manifests = {folder: manifest for folder in held if (manifest := manifest_of(folder.path))}
    for folder, manifest in manifests.items():
        for record in itertools.chain(*records_of(folder.path, manifest['stage']).values()):
            forgotten.learn(record, manifest['stage'])
    counts = {folder: _counts(folder.path, manifest['stage'], forgotten) for folder, manifest in manifests.items()}
    whole = {folder for folder, manifest in manifests.items() if _is_removed_whole(manifest, counts[folder])}
    corrections = {path: _corrections(path, forgotten) for path in traces.corrections}
    return _Plan(manifests, counts, whole, {path: each for path, each in corrections.items() if each.removed})


def _counts(folder: Path, stage: str, forgotten: Forgotten) -> Counter:
    """How many records of each file belong to the users; files without any are left out."""
    return +Counter({name: sum(map(forgotten.has, records)) for name, records in records_of(folder, stage).items()})


def _is_removed_whole(manifest: dict[str, Any], counts: Counter) -> bool:
    """Whether a folder is removed for its stage to make again, or because none of its trees would be left."""
    stage, trees = stage_named(manifest['stage']), sum(entry['trees'] for entry in manifest.get('shards', ()))
    return (stage is not None and stage.forgetting == 'removed') or counts['trees'] == trees > 0


def _corrections(path: Path, forgotten: Forgotten) -> _Corrections:
    read_corrections(path)  # raises for a line that is not a correction
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not forgotten.has_correction(json.loads(line))]
    left = b''.join(kept)
    return _Corrections(left, hashlib.sha256(left).hexdigest() if kept else '', len(lines) - len(kept))


def _remove(plan: _Plan, state: _State, config: ConfigDict, traces: Traces) -> dict[Path, dict[str, int]]:
    """Carry out a plan; the state on disk lets the next call resume after an interruption."""
    removed: dict[Path, dict[str, int]] = {}
    state.changed |= {file_digest(path): each.digest for path, each in plan.corrections.items()}
    state.write()
    _remove_work(config, traces)
    for folder, manifest in plan.manifests.items():
        counts = plan.counts[folder]
        if folder in plan.whole:
            folder.path.replace(folder.folder / 'removed')  # the next call removes it if this one is killed here
            remove(folder.folder / 'removed')
            removed[folder.path] = {}
        elif counts:
            state.changed |= _write_rest(folder, manifest, counts, state.forgotten)
            state.write()
            folder.put_in_place()
            removed[folder.path] = counts
    for path, each in sorted(plan.corrections.items()):
        _write_corrections(path, each.left)
        removed[path] = dict(lines=each.removed)
    for training_run in traces.runs:
        clean_log(training_run, state.forgotten)
    write_notes(traces.runs)
    return removed


def _remove_work(config: ConfigDict, traces: Traces) -> None:
    """Remove unfinished work, reports and the teacher's cache: they mix users' texts and can be made again."""
    cache = config.teacher.cache  # keyed by digests, so no entry can be traced to a user
    caches = [Path(cache), Path(f'{cache}-journal')] if cache else []  # the latter is left by a killed process
    for path in (*map(work_folder, sorted(traces.outputs)), *traces.temporary, *traces.reports, *caches):
        if path.exists():
            remove(path)


def _write_rest(folder: HeldFolder, manifest: dict[str, Any], counts: Counter, forgotten: Forgotten) -> dict[str, str]:
    """Write a folder again without the users' records; returns a mapping from old digests to new ones."""
    folder.folder.chmod(0o700)
    changed, manifest = {}, manifest | dict(forgotten=Counter(manifest.get('forgotten', {})) + counts)
    if manifest['stage'] == 'shards':
        shards = Shards(folder.path)
        trees = (tree for tree in map(shards.__getitem__, range(len(shards))) if tree.user_id not in forgotten.users)
        size = manifest['made_from']['trees_per_shard']
        write_shards(trees, folder.folder, trees_per_shard=size, manifest=manifest)
        changed[shards.digest] = Shards(folder.folder).digest
    else:
        for name in counts:
            with open(folder.path / name, 'rb') as file, new_file(folder.folder / name) as rest:
                rest.writelines(line for line in file if not forgotten.has(json.loads(line)))
            changed[file_digest(folder.path / name)] = file_digest(folder.folder / name)
        write_json(folder.folder / 'manifest.json', manifest)
    for path in folder.path.iterdir():
        if path.suffix != '.array_record' and not (folder.folder / path.name).exists():
            shutil.copy2(path, folder.folder / path.name)
    return changed


def _write_corrections(path: Path, left: bytes) -> None:
    if not left:
        path.unlink()
        return
    with new_file(path, private=True) as file:
        file.write(left)


def _update_digests(folders: list[Path], state: _State) -> None:
    """Put the inputs' new digests into the manifests and cards that are left."""
    manifests = {folder / 'manifest.json': manifest for folder in folders if (manifest := manifest_of(folder))}
    for path, manifest in manifests.items():
        made_from = json.loads(state.updated(json.dumps(manifest.get('made_from'))))
        if manifest['stage'] == 'ingest':
            made_from['settings']['opted_out'] = digest(sorted(state.forgotten.users))
        if made_from != manifest.get('made_from'):
            before = file_digest(path)
            write_json(path, manifest | dict(made_from=made_from))
            state.changed[before] = file_digest(path)
    cards = [path.parent for path, manifest in manifests.items() if manifest['stage'] == 'card']
    for path in itertools.chain.from_iterable(map(Path.iterdir, cards)):  # text files only
        write_bytes(path, state.updated(path.read_text(encoding='utf-8')).encode())


def _heads(config: ConfigDict, traces: Traces) -> list[Path]:
    """Folders of heads of follow-ups among the traces, and the one that the config names."""
    folders = [*traces.outputs, *([Path(config.follow_ups.head).resolve()] if config.follow_ups.head else [])]
    return sorted({path for path in folders if (manifest_of(path) or {}).get('stage') == 'head_labels'})


def in_words(report: Report, opt_out: str) -> list[str]:
    """The lines to print for a report."""
    lines = [
        f'{path}: {json.dumps(counts)} removed' if counts else f'{path}: removed, run its stage to make it again'
        for path, counts in report.removed.items()
    ]
    lines += [
        f'{user}: no records found; ids are those in records: if users are salted, `python -m data_pipelines.users` '
        "prints an address's key"
        for user in report.unknown
    ]
    lines += ['nothing was removed'] * (not report.removed)
    lines += [f'{opt_out}: these users are kept out from now on']
    lines += [
        f'{path}: was trained on a forgotten user, or started from a run that was: remove it and everything exported '
        'from it, then train again'
        for path in report.runs
    ]
    lines += [
        f'{head}: a head contains no text, but was trained on the turns of everyone who was labelled: if a forgotten '
        'user was among them, train it again'
        for head in report.heads
    ]
    return lines


def main() -> None:
    require_flags('user')
    config = load_config(flags.FLAGS.config)
    report = forget(config, frozenset(flags.FLAGS.user), flags.FLAGS.workdir)
    print('\n'.join(in_words(report, config.ingest.opt_out)))


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_multi_string('user', None, 'Id of a user to forget; repeat the flag for several users.')
    flags.DEFINE_string('workdir', None, "A loop's folder, or one that contains several loops, to search entirely.")
    run(main)
