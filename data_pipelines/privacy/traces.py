"""Finds the opt-out lists, and all paths where stages, runs and loops leave user text, even in unfinished work."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.config.loop_paths import opt_out_list
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json
from rlhi_jax.rounds.in_force import LINK

_UNFINISHED = ('.tmp', '.old', '.journal')  # endings of the names of unfinished work, which begin with a dot


class Traces(NamedTuple):
    """Paths that contain user text, with links resolved.

    Attributes:
      outputs: stage folders, finished or still being written.
      temporary: half-written files.
      corrections: the corrections files of persona stores.
      reports: loop reports, which show pairs.
      runs: training run folders.
      loops: workdirs of loops, and of stages that were run with --workdir.
    """

    outputs: set[Path]
    temporary: set[Path]
    corrections: set[Path]
    reports: set[Path]
    runs: set[Path]
    loops: set[Path]


def find_traces(config: ConfigDict, workdir: str | None) -> Traces:
    """Return all paths that contain user text.

    The search covers everything below the config's paths and --workdir. It also covers unfinished work, corrections
    files and runs that lie next to one of the config's paths.

    Raises:
      UserError: --workdir is not a folder, or --workdir is missing and the config does not point to a stage folder.
    """
    if workdir and not Path(workdir).is_dir():
        raise UserError(f'--workdir={workdir} is not a folder: pass the workdir of a loop')
    traces, roots = Traces(*(set() for _ in Traces._fields)), named_paths(config)
    if config.personas.corrections and Path(config.personas.corrections).exists():
        traces.corrections.add(Path(config.personas.corrections).resolve())
    for path in itertools.chain(_beside(roots), _below([*roots, *([Path(workdir)] if workdir else [])])):
        _add(path, traces)
    if not workdir and not traces.outputs:
        raise UserError(
            'config.data does not point to a folder that a stage wrote: pass the workdir of a loop as --workdir'
        )
    return traces


def find_heads(config: ConfigDict, traces: Traces) -> list[Path]:
    """Return the folders of all follow-up heads that were found, including the head named in the config."""
    folders = [*traces.outputs, *([Path(config.follow_ups.head).resolve()] if config.follow_ups.head else [])]
    return sorted({path for path in folders if (manifest_of(path) or {}).get('stage') == 'head_labels'})


def opt_out_lists(config: ConfigDict, workdir: str | None, traces: Traces) -> list[str]:
    """Return the paths of the opt-out lists to which forgotten users are added. The files need not exist.

    With --workdir, each loop has the list that `opt_out_list` names. Without --workdir, the only list is
    `config.ingest.opt_out`.

    Raises:
      UserError: there is no such list, or no list excludes users from `config.data.conversations`.
    """
    if not workdir and not config.ingest.opt_out:
        raise UserError(
            'config.ingest.opt_out is empty and --workdir is missing: set config.ingest.opt_out to a file that lists '
            'the users to exclude'
        )
    if not workdir:
        return [config.ingest.opt_out]
    loops, named = traces.loops or {Path(workdir)}, Path(config.data.conversations).resolve()
    is_elsewhere = config.data.conversations and named not in {(loop / 'conversations').resolve() for loop in loops}
    if is_elsewhere and named in traces.outputs and not config.ingest.opt_out:
        raise UserError(
            f'config.data.conversations ({named}) does not belong to a loop in --workdir={workdir}: set '
            'config.ingest.opt_out to one list for these conversations and the loops'
        )
    return sorted({opt_out_list(config, loop) for loop in loops})


def _add(path: Path, traces: Traces) -> None:
    """Record a path in the traces if it may contain user text.

    For a file of a stage or a run, the folder of the stage or run is recorded instead.
    """
    work = _of_work(path.name)
    if path.name == 'loop.json' or _is_ingested(path):
        traces.loops.add(path.parent)
    if work and path.is_dir():
        traces.outputs.add(path.with_name(work).resolve())
    elif work and path.suffix == '.tmp':
        traces.temporary.add(path)
    elif path.name == 'manifest.json' and manifest_of(path.parent):
        traces.outputs.add(path.parent)
    elif path.name == 'run.json':
        traces.runs.add(path.parent)
    elif path.name == 'report.json' and path.with_name('loop.json').exists():
        traces.reports.add(path)
    elif path.name.endswith('.corrections.jsonl'):
        traces.corrections.add(path.resolve())


def _is_ingested(path: Path) -> bool:
    """Return whether a path is the conversations folder in a workdir."""
    return path.name == 'conversations' and (manifest_of(path) or {}).get('stage') == 'ingest'


def _of_work(name: str) -> str:
    """Return the final name of unfinished work, given its temporary name; '' for any other name.

    >>> _of_work('.pairs.journal'), _of_work('pairs')
    ('pairs', '')
    """
    ending = next((each for each in _UNFINISHED if name.endswith(each)), '')
    return name[1 : -len(ending)] if ending and name.startswith('.') else ''


def named_paths(config: ConfigDict) -> list[Path]:
    """Return the data paths in the config, whether or not they exist.

    If a path leads to a file in a stage's folder, the folder is returned instead. Raw data is included only if a stage
    wrote it.
    """
    names = {
        key: [name.strip() for name in value.split(',')]
        for key, value in config.data.items()
        if isinstance(value, str) and key != 'split'
    }
    names |= {'': [config.eval.shards, config.personas.corrections]}
    paths = []
    for key, name in ((key, name) for key, each in names.items() for name in each if name):
        path = Path(name)
        if path.is_file() and manifest_of(path.parent):
            path = path.parent
        if key != 'raw' or manifest_of(path):
            paths.append(path)
    return paths


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a stage's finished folder, or None for any other folder."""
    path = folder / 'manifest.json'
    manifest = read_json(path, 'remove the folder and run its stage again') if path.exists() else None
    return manifest if isinstance(manifest, dict) and 'stage' in manifest else None


def _below(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield files and folders below the roots, following links; skip the contents of unfinished folders."""
    left, seen = [root.resolve() for root in roots if root.is_dir()], set()
    while left:
        folder = left.pop()
        if folder not in seen:
            seen.add(folder)
            for path in folder.iterdir():
                yield path
                is_link = path.name == LINK and path.is_symlink()  # of a loop, maybe to another loop's policy
                if path.is_dir() and not is_link and not _of_work(path.name):
                    left.append(path.resolve())


def _beside(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield unfinished work, corrections files and runs that lie next to the roots, following links."""
    for each in {each for root in roots for each in (root.absolute(), root.resolve()) if each.parent.is_dir()}:
        for path in each.parent.resolve().iterdir():
            if path.name.startswith(f'.{each.name}.') or path.name.endswith('.corrections.jsonl'):
                yield path
            elif (path / 'run.json').exists():
                yield path.resolve() / 'run.json'
