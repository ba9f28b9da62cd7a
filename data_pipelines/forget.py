"""Removes users' data from everything that stages have written, and lists the training runs that used this data.

    python -m data_pipelines.forget --config=configs/NAME.py --user=ID [--user=ID …] [--workdir=DIR]

Searches the paths in the config and all folders below them. With --workdir, it also searches everything in a loop's
folder, or in a folder that contains several loops. If a stage is writing one of these folders, the program stops and
changes nothing. Pass user ids as they appear in records. If `config.ingest.salt` is set, records contain the keys that
`python -m data_pipelines.users` prints.

First, the users are added to the opt-out list, which excludes them from later runs of `ingest`. The list is the file
`config.ingest.opt_out` or, if that key is empty, the file DIR.opt_out beside the workdir. A loop and stages with
--workdir=DIR read DIR.opt_out, too. (If --workdir contains several loops, each of them has its own list.) Everybody on
these lists is forgotten. If any data from these users is found, the program then changes the following:

- Records, preferences, claims and shards are rewritten without these users. Pairs that are made from two users' wishes
  (`data_pipelines.strangers`) are removed if either user is forgotten.
- Answers and pairs of these users are removed from the rounds of online runs. Stop these runs first.
- Folders that mix the texts of several users or are cheap to make again are removed completely: row plans (which trees
  share a training row), TFDS data sets, data cards, evaluations of simulated users and replies that a gate compared.
  Shards with shuffled personas, reports and unfinished work are removed, too.
- In the teacher's cache, answers to requests that contain only these users' text are removed. Answers to requests
  whose authors are unknown are removed, too. An older version or `rlhi_jax.check` stored those answers.
- Digests in manifests are updated, so finished stages stay up to date. A manifest keeps its original counts. Its field
  `forgotten` contains the number of records that have since been removed from each file.

The remaining records are the ones that the stages would make from data without these users, unless a limit on
conversations, turns or prompts was reached.

Trained models cannot forget. A note is written to the folder of each training run that used a forgotten user's data,
and to the folder of each run that started from such a run's parameters. Every call lists these runs: remove them and
train again. Also remove everything exported from these runs, because this program cannot find exported models. Every
call also lists the heads (small classifiers that label follow-up turns). They contain no text, but each was trained on
all turns in its file of labels. Files that no stage wrote (raw data, labels, your own preferences, recorded answers of
a teacher) are not changed, so clean them yourself.
"""

from absl import flags

from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_multi_string('user', None, 'The id of a user to forget; repeat the flag for several users.')
    flags.DEFINE_string(
        'workdir', None, "A loop's folder, or a folder that contains several loops; all files in it are searched."
    )
    start()

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

from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.core.registry import stage_named
from data_pipelines.persona.corrections import read_corrections
from data_pipelines.privacy.forgotten import (
    Forgotten,
    clean_log,
    clean_round,
    counts_of,
    find_in_rounds,
    find_notes,
    noted_runs,
    records_of,
    trees_of,
    write_notes,
)
from data_pipelines.privacy.traces import Traces, find_heads, find_traces, manifest_of, named_paths, opt_out_lists
from data_pipelines.privacy.user_keys import opt_out_with, write_opt_out
from data_pipelines.teacher.cache import RemovedAnswers, authors_in, forget_answers
from data_pipelines.teacher.recorded import SUFFIX
from rlhi_jax.data.shards import Shards, write_shards
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
    """The outcome of a call to `forget`.

    Attributes:
      removed: for each changed path, how many records were removed from each file, 'trees' from shards,
        'pairs' from other trees, or 'lines' from a corrections file or an online run's file; {} for a whole folder.
      answers: how many answers were removed from the teacher's cache.
      unknown: the requested users for whom nothing was found.
      runs: the runs that were trained on the data of a user forgotten now or earlier, or that started from such a run.
      heads: the folders of all follow-up heads, whether or not they were trained on a forgotten user's turns.
      lists: the paths of the opt-out lists.
      cache: `config.teacher.cache`, the path of a cache or of a file of recorded answers.
    """

    removed: dict[Path, dict[str, int]]
    answers: RemovedAnswers
    unknown: list[str]
    runs: list[Path]
    heads: list[Path]
    lists: list[str]
    cache: str


class _State:
    """The users to forget, the ids of their records, and the files changed so far.

    This state is saved on disk until the call to `forget` finishes. An interrupted call can therefore be resumed, even
    though the folders that it has already cleaned no longer contain the ids.

    Attributes:
      resumed: whether an interrupted call left its state on disk.
      forgotten: the users, and the ids of their conversations and other records.
      changed: the new digests of changed files, keyed by old digest.
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
        """Return `text` with old digests replaced by new ones."""
        for old, new in self.changed.items():
            while new in self.changed:  # the file changed more than once
                new = self.changed[new]
            text = text.replace(old, new)
        return text


class _Corrections(NamedTuple):
    """The lines to keep in a corrections file, their digest ('' if no line is kept), and how many lines to remove."""

    left: bytes
    digest: str
    removed: int


class _Plan(NamedTuple):
    """The folders, records, corrections and answers that a call to `forget` will remove.

    Attributes:
      manifests: the manifests of all finished folders.
      counts: for each folder, the result of `counts_of`.
      whole: the folders to remove completely.
      corrections: what remains of each corrections file that loses lines, keyed by path.
      answered: the ids of the forgotten authors in the teacher's cache. An author's id is a user id or, if the user is
        unknown, a conversation id.
      notes: for each training run that gets a note, the number of forgotten users' pairs in the run's log.
      rounds: for each file of an online run, how many answers or pairs it loses.
    """

    manifests: dict[HeldFolder, dict[str, Any]]
    counts: dict[HeldFolder, Counter]
    whole: set[HeldFolder]
    corrections: dict[Path, _Corrections]
    answered: set[str]
    notes: dict[Path, int]
    rounds: dict[Path, int]

    def finds_anything(self) -> bool:
        return bool(self.corrections or self.answered) or any((*self.counts.values(), *self.rounds.values()))


def forget(config: ConfigDict, users: frozenset[str], workdir: str | None) -> Report:
    """Remove the data of these users and of everybody on the opt-out lists, and return a report.

    If a call is interrupted, the next call resumes it.

    Raises:
      UserError: there is no opt-out list, no folder is found, a file cannot be read, or a stage is writing one of the
        folders. In each case, nothing has been changed.
    """
    traces = find_traces(config, workdir)
    lists = opt_out_lists(config, workdir, traces)
    listed = frozenset().union(*(opt_out_with(path, users) for path in lists))
    above = Path(workdir) if workdir else next(path.parent for path in named_paths(config) if path.parent.is_dir())
    with contextlib.ExitStack() as stack:
        held = _hold(traces.outputs, stack)
        state = _State(above / UNDER_WAY, listed)
        for folder in held:
            settle(folder.path)
        plan = _make_plan(held, traces, state.forgotten, _cache(config))
        for path in lists:
            write_opt_out(path, state.forgotten.users)
        removed, answers = {}, RemovedAnswers()
        if state.resumed or plan.finds_anything():
            removed, answers = _remove(plan, state, traces, _cache(config))
        _update_digests([folder.path for folder in plan.manifests], state)
        state.remove()
    unknown = sorted(users - state.forgotten.seen)
    return Report(
        removed, answers, unknown, noted_runs(traces.runs), find_heads(config, traces), lists, config.teacher.cache
    )


def _hold(folders: Iterable[Path], stack: contextlib.ExitStack) -> list[HeldFolder]:
    """Prevent other processes from writing to the folders until the stack is closed."""
    held = [stack.enter_context(HeldFolder(path)) for path in sorted(folders)]
    for folder in held:
        if folder.path.is_dir():  # another process may be moving it into place or correcting it
            stack.callback(os.close, locked(folder.path))
    return held


def _cache(config: ConfigDict) -> str:
    """Return the path of the teacher's cache; '' if `config.teacher.cache` is empty or a file of recorded answers."""
    return '' if config.teacher.cache.endswith(SUFFIX) else config.teacher.cache


def _make_plan(held: list[HeldFolder], traces: Traces, forgotten: Forgotten, cache: str) -> _Plan:
    """Collect the ids of forgotten users' records from all folders, then count these records in each folder."""
    manifests = {folder: manifest for folder in held if (manifest := manifest_of(folder.path))}
    for folder, manifest in manifests.items():
        for record in itertools.chain(*records_of(folder.path, manifest['stage']).values()):
            forgotten.learn(record, manifest['stage'])
    rounds = find_in_rounds(traces.runs, forgotten)
    counts = {folder: counts_of(folder.path, manifest['stage'], forgotten) for folder, manifest in manifests.items()}
    whole = {folder for folder, manifest in manifests.items() if _is_removed_whole(manifest, counts[folder])}
    corrections = {path: _corrections(path, forgotten) for path in traces.corrections}
    answered = authors_in(cache) & forgotten.authors if cache else set()
    forgotten.seen |= answered & forgotten.users
    corrections = {path: each for path, each in corrections.items() if each.removed}
    return _Plan(manifests, counts, whole, corrections, answered, find_notes(traces.runs, forgotten), rounds)


def _is_removed_whole(manifest: dict[str, Any], counts: Counter) -> bool:
    """Return whether to remove a folder completely: it can be remade, has no more trees, or hides whose personas."""
    stage, trees = stage_named(manifest['stage']), sum(entry['trees'] for entry in manifest.get('shards', ()))
    shuffled = 'shuffle_personas' in manifest.get('made_from', ())
    return (stage is not None and stage.forgetting == 'removed') or shuffled or counts['trees'] == trees > 0


def _corrections(path: Path, forgotten: Forgotten) -> _Corrections:
    read_corrections(path)  # raises UserError if a line is not a correction
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not forgotten.has_correction(json.loads(line))]
    left = b''.join(kept)
    return _Corrections(left, hashlib.sha256(left).hexdigest() if kept else '', len(lines) - len(kept))


def _remove(
    plan: _Plan, state: _State, traces: Traces, cache: str
) -> tuple[dict[Path, dict[str, int]], RemovedAnswers]:
    """Carry out a plan and return what was removed, as in `Report.removed` and `Report.answers`.

    The state on disk lets the next call resume after an interruption.
    """
    removed: dict[Path, dict[str, int]] = {}
    state.changed |= {file_digest(path): each.digest for path, each in plan.corrections.items()}
    state.write()
    _remove_work(traces)
    answers = forget_answers(cache, state.forgotten.authors) if cache else RemovedAnswers()
    for folder, manifest in plan.manifests.items():
        counts = plan.counts[folder]
        if folder in plan.whole:
            folder.path.replace(folder.folder / 'removed')  # the next call removes it if this call is killed here
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
    for path, lines in plan.rounds.items():
        clean_round(path, state.forgotten)
        removed |= {path: dict(lines=lines)} if lines else {}
    for training_run in traces.runs:
        clean_log(training_run, state.forgotten)
    write_notes(plan.notes)
    return removed, answers


def _remove_work(traces: Traces) -> None:
    """Remove unfinished work and reports, which mix users' texts and can be made again."""
    for path in (*map(work_folder, sorted(traces.outputs)), *traces.temporary, *traces.reports):
        if path.exists():
            remove(path)


def _write_rest(folder: HeldFolder, manifest: dict[str, Any], counts: Counter, forgotten: Forgotten) -> dict[str, str]:
    """Rewrite a folder without forgotten users' records; return the new digests, keyed by old digest."""
    folder.folder.chmod(0o700)
    changed, manifest = {}, manifest | dict(forgotten=Counter(manifest.get('forgotten', {})) + counts)
    if manifest['stage'] == 'shards':
        trees = filter(None, map(forgotten.rest_of, trees_of(folder.path)))
        size = manifest['made_from']['trees_per_shard']
        write_shards(trees, folder.folder, trees_per_shard=size, manifest=manifest)
        changed[Shards(folder.path).digest] = Shards(folder.folder).digest
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
    """Replace old digests of inputs with new ones in the manifests and cards that were not removed."""
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
    for path in itertools.chain.from_iterable(map(Path.iterdir, cards)):  # a card's folder contains only text files
        write_bytes(path, state.updated(path.read_text(encoding='utf-8')).encode())


def in_words(report: Report) -> list[str]:
    """Return the lines to print for a report."""
    lines = [
        f'{path}: {json.dumps(counts)} removed' if counts else f'{path} was removed: rerun its stage to recreate it'
        for path, counts in report.removed.items()
    ]
    lines += [
        f'{user}: no records found: pass the id as it appears in records (if config.ingest.salt is set, `python -m '
        'data_pipelines.users` prints the key that replaces an address or id)'
        for user in report.unknown
    ]
    if answers := sum(report.answers):
        lines.append(
            f"{report.cache}: {answers} answers removed from the teacher's cache: {report.answers.theirs} to requests "
            f"that contained only forgotten users' text, and {report.answers.unknown} to requests whose authors are "
            'unknown'
        )
    lines += ['nothing was removed'] * (not report.removed and not answers)
    if report.cache.endswith(SUFFIX) and Path(report.cache).exists():
        lines.append(
            f"{report.cache}: this file of a teacher's recorded answers was not changed: if it contains answers to "
            "requests with a forgotten user's text, remove the file or record the answers again"
        )
    lines += [f'{path}: the users on this list are excluded from later runs of `ingest`' for path in report.lists]
    lines += [
        f'{path}: this run was trained on the data of a forgotten user, or started from such a run: remove the run and '
        'everything exported from it, then train again'
        for path in report.runs
    ]
    lines += [
        f'{head}: this follow-up head contains no text, but was trained on labelled turns: if these include turns of a '
        'forgotten user, train the head again'
        for head in report.heads
    ]
    return lines


def main() -> None:
    require_flags('user')
    config = load_config(flags.FLAGS.config)
    print('\n'.join(in_words(forget(config, frozenset(flags.FLAGS.user), flags.FLAGS.workdir))))


if __name__ == '__main__':
    run(main)
