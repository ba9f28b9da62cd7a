"""Removes users from everything that stages have written, and names the runs that were trained on them.

    python -m data_pipelines.forget --config=configs/NAME.py --user=ID[,ID…] [--workdir=DIR]

Works on every stage's folder at or below those that the config names and, with --workdir, on all of a loop's. The ids
are those of records (keys, where users are salted). They are put on the list `config.ingest.opt_out` first, which keeps
them out of later ingests. Then records, preferences, claims and shards are written again without them; what holds text
of several users or is cheap to make (row plans, data sets, cards, reports, the teacher's cache, work that is under way)
is removed, for its stage to make again. Manifests follow, so that finished stages stay up to date; they keep the counts
of what was once done, and say how many records of which file were `forgotten` since. Where no cap on conversations,
turns or prompts is reached, what is left is what the stages would make of a dump without these users.

Weights cannot be made to forget: runs that were trained on one of the users are named, for the reader to remove and
train again. Raw files are the reader's own.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.stage import Record, stream_records, write_records
from data_pipelines.users import add_opt_out, read_opt_out
from rlhi_jax import errors
from rlhi_jax.config import define_config_flag, load_config
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import Interaction
from rlhi_jax.errors import UserError
from rlhi_jax.files import complete_lines, digest, file_digest, new_folder, read_json, settle, write_bytes, write_json

MADE_AGAIN = ('rows', 'datasets', 'card')  # stages whose folders are removed
UNDER_WAY = '.forgetting.json'
_USER = ('user_id', 'hashed_ip')  # where records, and raw ones, name who speaks
_REMEDY = 'remove the folder and run its stage again'


def stage_folders(roots: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Every finished folder of a stage at or below the roots, with its manifest."""
    paths = {path.resolve() for root in roots for path in (root.glob('**/manifest.json'))}
    manifests = {path.parent: read_json(path, _REMEDY, fields=()) for path in sorted(paths)}
    return {folder: manifest for folder, manifest in manifests.items() if 'stage' in manifest}


def roots_of(config: ConfigDict, workdir: str | None) -> list[Path]:
    """The folders that the config and the flag name, those that are there.

    Raises:
      UserError: there is none.
    """
    found = [path for path in _named(config, workdir) if path.is_dir()]
    if not found:
        raise UserError('config.data names no folder that is there: name what stages wrote, or a loop by --workdir')
    return found


def _named(config: ConfigDict, workdir: str | None) -> list[Path]:
    """What the config and the flag name, whether it is there or not: a stage that was killed leaves work beside it."""
    names = [name for key in config.data for name in _folders(config, key)]
    return [Path(name) for name in (*names, config.eval.shards, config.personas.corrections, workdir) if name]


def _folders(config: ConfigDict, key: str) -> list[str]:
    value = config.data[key]
    return value.split(',') if isinstance(value, str) and key not in ('raw', 'split') else []


class Forgotten:
    """Tells whether a record is of one of the users: by its user, or else by the conversation or turn that it is of."""

    def __init__(self, users: frozenset[str], names: frozenset[str]):
        self._users, self._names = users, names

    def holds(self, record: Record) -> bool:
        if any(key in record for key in _USER):
            return any(record.get(key) in self._users for key in _USER)
        return self.named(str(record.get('id', '')))

    def named(self, name: str) -> bool:
        """Whether a name is that of one of the users, or of what is theirs."""
        return name in self._users or name in self._names or name.rsplit('/', 1)[0] in self._names


def _names(folders: Iterable[Path], users: frozenset[str]) -> frozenset[str]:
    """Ids of the users' conversations and of what else is theirs, in any stage's records."""
    theirs, found = Forgotten(users, frozenset()), set()
    for folder in folders:
        for path in folder.glob('*.jsonl'):
            for record in filter(theirs.holds, stream_records(path)):
                found |= {record[key] for key in ('conversation', 'id') if isinstance(record.get(key), str)}
    return frozenset(found)


def _without(folder: Path, forgotten: Forgotten) -> Callable[[Path], dict[str, str]] | None:
    """What writes a folder again without those to be forgotten and returns the new digests by the old; or None."""
    paths = sorted(folder.glob('*.jsonl'))
    gone = +Counter({path.name: sum(map(forgotten.holds, stream_records(path))) for path in paths})
    if not gone:
        return None

    def write(temporary: Path) -> dict[str, str]:
        changed, manifest = {}, read_json(folder / 'manifest.json', _REMEDY)
        for name in gone:
            left = (record for record in stream_records(folder / name) if not forgotten.holds(record))
            write_records(temporary / name, left)
            changed[file_digest(folder / name)] = file_digest(temporary / name)
        before = Counter(manifest.get('forgotten', {}))
        write_json(temporary / 'manifest.json', manifest | dict(forgotten=before + gone))
        return changed

    return write


def _shards_without(folder: Path, forgotten: Forgotten) -> Callable[[Path], dict[str, str]] | None:
    """The same of interaction shards."""
    shards = Shards(folder)

    def theirs(tree: Interaction) -> bool:
        return forgotten.holds(dict(user_id=tree.user_id, id=tree.id))

    def trees() -> Iterator[Interaction]:
        return map(shards.__getitem__, range(len(shards)))

    number = sum(map(theirs, trees()))
    if not number:
        return None

    def write(temporary: Path) -> dict[str, str]:
        if number == len(shards):
            raise UserError(f'{folder} holds nothing but theirs: remove it, and what was made from it, then run again')
        size = shards.manifest['made_from']['trees_per_shard']
        kept = (tree for tree in trees() if not theirs(tree))
        gone = Counter(shards.manifest.get('forgotten', {})) + Counter(trees=number)
        write_shards(kept, temporary, trees_per_shard=size, manifest=shards.manifest | dict(forgotten=gone))
        entries = read_json(temporary / 'manifest.json', _REMEDY)['shards']
        return {shards.digest: digest([entry['sha256'] for entry in entries])}

    return write


def _runs(roots: Iterable[Path]) -> set[Path]:
    """Logs of which pairs each step of a run was trained on, at or below the roots or beside them."""
    places = [(root, '**/examples.jsonl') for root in roots] + [(root.parent, '*/examples.jsonl') for root in roots]
    return {path.resolve() for base, pattern in places for path in base.glob(pattern)}


def _pairs(log: Path) -> Iterator[str]:
    return (name for step in stream_records(log) for name in step['pairs'])


def forget(config: ConfigDict, users: frozenset[str], workdir: str | None) -> list[str]:
    """Remove users; returns the folders of runs that were trained on them. Interrupted, it is begun again.

    Raises:
      UserError: there is nothing to remove them from, or no list to put them on.
    """
    if not config.ingest.opt_out:
        raise UserError('config.ingest.opt_out is empty: name the file of those who are to be kept out from now on')
    roots = roots_of(config, workdir)
    add_opt_out(config.ingest.opt_out, users)
    # What an interrupted call has found out already can no longer be found in folders that it has cleaned.
    state_path = (Path(workdir) if workdir else roots[0].parent) / UNDER_WAY
    state = read_json(state_path, 'remove it') if state_path.exists() else dict(names=[], runs=[], changed={})
    for path in [path for root in roots for path in root.glob('**/.*.old')]:
        settle(path.with_name(path.name.removeprefix('.').removesuffix('.old')))
    folders = stage_folders(roots)
    names = _names(folders, users) | frozenset(state['names'])
    forgotten = Forgotten(users, names)
    state['names'] = sorted(names)
    logs = {path for path in _runs(roots) if any(map(forgotten.named, _pairs(path)))}
    state['runs'] = sorted({*state['runs'], *(str(path.parent) for path in logs)})
    write_json(state_path, state)
    for path in _named(config, workdir):
        _remove_work(path)
    for folder, manifest in folders.items():
        if manifest['stage'] in MADE_AGAIN:
            shutil.rmtree(folder)
            continue
        without = (_shards_without if manifest['stage'] == 'shards' else _without)(folder, forgotten)
        if without:
            _write_again(folder, without, state, state_path)
    for path in logs:
        steps = list(stream_records(path))
        write_records(path, (step | dict(pairs=[n for n in step['pairs'] if not forgotten.named(n)]) for step in steps))
    for path in _corrections(config, roots):
        state['changed'] |= _correct(path, forgotten)
        write_json(state_path, state)
    _mend_manifests(stage_folders(roots), state['changed'], read_opt_out(config.ingest.opt_out))
    for root in roots:
        (root / 'report.json').unlink(missing_ok=True)  # of a loop: it shows pairs
    if config.teacher.cache:  # answers by digest: whose they are nobody can tell
        for name in (config.teacher.cache, f'{config.teacher.cache}-journal'):  # of a process killed as it wrote
            Path(name).unlink(missing_ok=True)
    state_path.unlink()
    return state['runs']


def _write_again(folder: Path, write: Callable[[Path], dict[str, str]], state: dict, state_path: Path) -> None:
    with new_folder(folder, overwrite=True) as temporary:
        temporary.chmod(0o700)
        state['changed'] |= write(temporary)
        for path in folder.iterdir():
            if path.suffix != '.array_record' and not (temporary / path.name).exists():
                shutil.copy2(path, temporary / path.name)
        write_json(state_path, state)


def _mend_manifests(folders: dict[Path, dict[str, Any]], changed: dict[str, str], opted_out: frozenset[str]) -> None:
    """Let manifests name the digests of what their inputs are now."""
    for folder, manifest in folders.items():
        text = json.dumps(manifest.get('made_from'))
        for old, new in changed.items():
            text = text.replace(old, new)
        made_from = json.loads(text)
        if manifest['stage'] == 'ingest':
            made_from['settings']['opted_out'] = digest(sorted(opted_out))
        if made_from != manifest.get('made_from'):
            write_json(folder / 'manifest.json', manifest | dict(made_from=made_from))


def _remove_work(root: Path) -> None:
    """Journals, files and folders of work that is under way, beside the root and below it."""
    for base, pattern in ((root, '**/.*'), (root.parent, f'.{root.name}.*')):
        for path in base.glob(pattern):
            if path.name.endswith(('.journal', '.tmp')):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _corrections(config: ConfigDict, roots: Iterable[Path]) -> set[Path]:
    """Files of corrections of persona stores: where the config says, or beside their folders."""
    named = [Path(config.personas.corrections)] if config.personas.corrections else []
    found = (path for root in roots for base in (root, root.parent) for path in base.glob('*.corrections.jsonl'))
    return {path.resolve() for path in (*named, *found) if path.exists()}


def _correct(path: Path, forgotten: Forgotten) -> dict[str, str]:
    """Take corrections of the users' claims out of a file; returns its new digest, '' for none, by the old."""
    before, lines = file_digest(path), complete_lines(path)
    kept = [line for line in lines if not any(map(forgotten.named, json.loads(line).values()))]
    if kept == lines:
        return {}
    if not kept:
        path.unlink()
        return {before: ''}
    write_bytes(path, b''.join(kept))
    return {before: file_digest(path)}


def main() -> None:
    errors.require_flags('user')
    config = load_config(flags.FLAGS.config)
    users = frozenset(filter(None, flags.FLAGS.user.split(',')))
    runs = forget(config, users, flags.FLAGS.workdir)
    print(f'{len(users)} users are removed, and on {config.ingest.opt_out}')
    for run in runs:
        print(f'trained on them: {run} and what was exported from it. Remove it and train again.')


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_string('user', None, 'Ids of users to forget, joined by commas.')
    flags.DEFINE_string('workdir', None, "A loop's folder, to forget them in all of it.")
    errors.run(main)
