"""Removes users from everything that stages have written, and names the runs that were trained on them.

    python -m data_pipelines.forget --config=configs/NAME.py --user=ID [--user=ID …] [--workdir=DIR]

Works on every stage's folder at or below those that the config names and, with --workdir, on all of a loop's, or of
all loops below one folder. A stage that is writing one of them is named, and nothing is done. The ids are those of
records (keys, where users are salted). They are put on the list `config.ingest.opt_out` first, which keeps them out of
later ingests; everybody on that list is forgotten. If nothing of theirs is found, nothing is removed. Else records,
preferences, claims and shards are written again without them; what holds text of several users or is cheap to make (row
plans, data sets, cards, evaluations of simulated users, reports, the teacher's cache, work that is under way) is
removed, for its stage to make again. Manifests follow, so that finished stages stay up to date; they keep the counts of
what was once done, and say how many records of which file were `forgotten` since. Where no cap on conversations, turns
or prompts is reached, what is left is what the stages would make of a dump without these users.

Weights cannot be made to forget. Runs that were trained on somebody forgotten get a note, and so do those that began
with such a run's parameters; they are named whenever this is called, for the reader to remove and train again. What was
exported from them no file tells. Heads of follow-ups hold no text, but were trained on turns of all who were labelled
then. Files that no stage wrote, such as raw ones, labels and preferences, are the reader's own.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.persona.corrections import read_corrections
from data_pipelines.privacy.forgotten import Forgotten, clean_log, note, noted, records_of
from data_pipelines.privacy.traces import Traces, find, manifest_of, named
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

MADE_AGAIN = ('rows', 'datasets', 'card', 'satisfaction')  # stages whose folders are removed
UNDER_WAY = '.forgetting.json'


class Report(NamedTuple):
    """What has come of it.

    Attributes:
      removed: how many records by file, trees or lines are gone, by folder or file; {}: the folder itself is.
      unknown: users who were asked for and of whom nothing was found.
      runs: trained on somebody forgotten, now or earlier, or begun with such a run.
      heads: of follow-ups, whoever they were trained on.
    """

    removed: dict[Path, dict[str, int]]
    unknown: list[str]
    runs: list[Path]
    heads: list[Path]


class _State:
    """What is known of those to be forgotten, on disk until all is done: cleaned folders tell it no more.

    Attributes:
      begun: whether a call that was interrupted has left it.
      theirs: who they are, and what is theirs.
      changed: new digests of files by the old.
    """

    def __init__(self, path: Path, users: frozenset[str]):
        self._path, self.begun = path, path.exists()
        names = ('users', 'conversations', 'records', 'changed')
        left = read_json(path, 'remove it', fields=names) if self.begun else dict.fromkeys(names, ())
        self.theirs = Forgotten(
            users.union(left['users']), set(left['conversations']), set(left['records']), set(left['users'])
        )
        self.changed = dict(left['changed'])

    def write(self) -> None:
        found = {name: sorted(getattr(self.theirs, name)) for name in ('users', 'conversations', 'records')}
        write_json(self._path, dict(found, changed=self.changed))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def renewed(self, text: str) -> str:
        """A text that names digests, with those of what files hold now."""
        for old, new in self.changed.items():
            while new in self.changed:  # it was changed once more
                new = self.changed[new]
            text = text.replace(old, new)
        return text


def forget(config: ConfigDict, users: frozenset[str], workdir: str | None) -> Report:
    """Remove users, and all others on the list `config.ingest.opt_out`; if it is interrupted, call it again.

    Raises:
      UserError: there is no list to put them on or nothing to remove them from, a file cannot be read, or a stage is at
        work; nothing has changed then.
    """
    if not config.ingest.opt_out:
        raise UserError('config.ingest.opt_out is empty: name the file of those who are to be kept out from now on')
    listed, traces = opt_out_with(config.ingest.opt_out, users), find(config, workdir)
    above = Path(workdir) if workdir else next(path.parent for path in named(config) if path.parent.is_dir())
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(HeldFolder(path)) for path in sorted(traces.outputs)]
        for folder in held:
            if folder.path.is_dir():  # may be being put in place, or corrected
                stack.callback(os.close, locked(folder.path))
        state = _State(above / UNDER_WAY, listed)
        theirs = state.theirs
        for folder in held:
            settle(folder.path)
        manifests = {folder: manifest for folder in held if (manifest := manifest_of(folder.path))}
        for folder, manifest in manifests.items():
            for record in itertools.chain(*records_of(folder.path, manifest['stage']).values()):
                theirs.learn(record, manifest['stage'])
        gone = {folder: _gone(folder.path, manifest['stage'], theirs) for folder, manifest in manifests.items()}
        corrections = {path: found for path in traces.corrections if (found := _corrections(path, theirs)).gone}

        write_opt_out(config.ingest.opt_out, theirs.users)
        removed: dict[Path, dict[str, int]] = {}
        if state.begun or corrections or any(gone.values()):
            state.changed |= {file_digest(path): found.digest for path, found in corrections.items()}
            state.write()
            _remove_work(config, held, traces)
            for folder, manifest in manifests.items():
                trees = sum(entry['trees'] for entry in manifest.get('shards', ()))
                if manifest['stage'] in MADE_AGAIN or gone[folder]['trees'] == trees > 0:
                    folder.path.replace(folder.folder / 'removed')  # should it end now, that is found again
                    remove(folder.folder / 'removed')
                    removed[folder.path] = {}
                elif gone[folder]:
                    state.changed |= _write_rest(folder, manifest, gone[folder], theirs)
                    state.write()
                    folder.put_in_place()
                    removed[folder.path] = gone[folder]
            for path, found in sorted(corrections.items()):
                _write_corrections(path, found.left)
                removed[path] = dict(lines=found.gone)
            for run in traces.runs:
                clean_log(run, theirs)
            note(traces.runs)
        _mend([folder.path for folder in manifests], state)
        state.remove()
    heads = [*traces.outputs, *([Path(config.follow_ups.head).resolve()] if config.follow_ups.head else [])]
    heads = sorted({path for path in heads if (manifest_of(path) or {}).get('stage') == 'head_labels'})
    return Report(removed, sorted(users - theirs.seen), noted(traces.runs), heads)


def _gone(folder: Path, stage: str, theirs: Forgotten) -> Counter:
    """How much of what is in a folder is theirs."""
    return +Counter({name: sum(map(theirs.holds, records)) for name, records in records_of(folder, stage).items()})


def _write_rest(folder: HeldFolder, manifest: dict[str, Any], gone: Counter, theirs: Forgotten) -> dict[str, str]:
    """Write a folder again without what is theirs; returns the new digests by the old."""
    folder.folder.chmod(0o700)
    changed, told = {}, manifest | dict(forgotten=Counter(manifest.get('forgotten', {})) + gone)
    if manifest['stage'] == 'shards':
        shards = Shards(folder.path)
        trees = (tree for tree in map(shards.__getitem__, range(len(shards))) if tree.user_id not in theirs.users)
        size = manifest['made_from']['trees_per_shard']
        write_shards(trees, folder.folder, trees_per_shard=size, manifest=told)
        changed[shards.digest] = Shards(folder.folder).digest
    else:
        for name in gone:
            with open(folder.path / name, 'rb') as file, new_file(folder.folder / name) as left:
                left.writelines(line for line in file if not theirs.holds(json.loads(line)))
            changed[file_digest(folder.path / name)] = file_digest(folder.folder / name)
        write_json(folder.folder / 'manifest.json', told)
    for path in folder.path.iterdir():
        if path.suffix != '.array_record' and not (folder.folder / path.name).exists():
            shutil.copy2(path, folder.folder / path.name)
    return changed


def _remove_work(config: ConfigDict, held: list[HeldFolder], traces: Traces) -> None:
    """Remove what is of several users and can be made again: work under way, reports, and the teacher's cache."""
    cache = config.teacher.cache  # answers by digest: whose they are nobody can tell
    caches = [Path(cache), Path(f'{cache}-journal')] if cache else []  # the second of a process killed as it wrote
    for path in (*(work_folder(folder.path) for folder in held), *traces.temporary, *traces.reports, *caches):
        if path.exists():
            remove(path)


def _mend(folders: list[Path], state: _State) -> None:
    """Let manifests, and the cards that are left, name the digests of what their inputs are now."""
    manifests = {folder / 'manifest.json': manifest for folder in folders if (manifest := manifest_of(folder))}
    for path, manifest in manifests.items():
        made_from = json.loads(state.renewed(json.dumps(manifest.get('made_from'))))
        if manifest['stage'] == 'ingest':
            made_from['settings']['opted_out'] = digest(sorted(state.theirs.users))
        if made_from != manifest.get('made_from'):
            before = file_digest(path)
            write_json(path, manifest | dict(made_from=made_from))
            state.changed[before] = file_digest(path)
    cards = [path.parent for path, manifest in manifests.items() if manifest['stage'] == 'card']
    for path in itertools.chain.from_iterable(map(Path.iterdir, cards)):  # all of it is text
        write_bytes(path, state.renewed(path.read_text(encoding='utf-8')).encode())


class _Corrections(NamedTuple):
    """What is left of a file of corrections without theirs, its digest ('' for none), and how many lines are gone."""

    left: bytes
    digest: str
    gone: int


def _corrections(path: Path, theirs: Forgotten) -> _Corrections:
    read_corrections(path)  # which refuses what is none
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not theirs.corrected(json.loads(line))]
    left = b''.join(kept)
    return _Corrections(left, hashlib.sha256(left).hexdigest() if kept else '', len(lines) - len(kept))


def _write_corrections(path: Path, left: bytes) -> None:
    if not left:
        path.unlink()
        return
    with new_file(path, private=True) as file:
        file.write(left)


def in_words(report: Report, listed: str) -> list[str]:
    """A report, line by line."""
    said = [
        f'{path}: {json.dumps(counts)} removed' if counts else f'{path}: removed, for its stage to make again'
        for path, counts in report.removed.items()
    ]
    said += [
        f'{user}: nothing of theirs is found; ids are those of records: `python -m data_pipelines.users` tells the key '
        'of an address, where they are salted'
        for user in report.unknown
    ]
    said += ['nothing is removed'] * (not report.removed)
    said += [f'{listed}: all of them are kept out from now on']
    said += [
        f'{run}: was trained on somebody forgotten, or on from such a run; remove it, and what was exported from it, '
        'and train again'
        for run in report.runs
    ]
    said += [
        f'{head}: a head holds no text, but was trained on turns of all who were labelled; if some of those were of '
        'somebody forgotten, train it again without'
        for head in report.heads
    ]
    return said


def main() -> None:
    require_flags('user')
    config = load_config(flags.FLAGS.config)
    report = forget(config, frozenset(flags.FLAGS.user), flags.FLAGS.workdir)
    print('\n'.join(in_words(report, config.ingest.opt_out)))


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_multi_string('user', None, 'Id of a user to forget; give it once for each.')
    flags.DEFINE_string('workdir', None, "A loop's folder, or one with several loops, to forget them in all of it.")
    run(main)
