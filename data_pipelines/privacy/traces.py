"""Where stages, runs and loops leave users' texts, unfinished work included."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json

_WORK = re.compile(r'\.(.+)\.(?:tmp|old|journal)', re.DOTALL)  # written beside the folder or file of that name


class Traces(NamedTuple):
    """Paths with users' texts, links resolved.

    Attributes:
      outputs: stages' folders, finished or being written.
      temporary: half-written files.
      corrections: corrections files of persona stores.
      reports: loops' reports, which show pairs.
      runs: folders of training runs.
    """

    outputs: set[Path]
    temporary: set[Path]
    corrections: set[Path]
    reports: set[Path]
    runs: set[Path]


def find_traces(config: ConfigDict, workdir: str | None) -> Traces:
    """Search the paths that the config and --workdir name, all folders below them, and unfinished work beside them.

    Raises:
      UserError: the config names no folder of a stage, or --workdir is not a folder.
    """
    if workdir and not Path(workdir).is_dir():
        raise UserError(f'--workdir={workdir} is not a folder: name the folder of a loop')
    traces, roots = Traces(set(), set(), set(), set(), set()), named_paths(config)
    if config.personas.corrections and Path(config.personas.corrections).exists():
        traces.corrections.add(Path(config.personas.corrections).resolve())
    for path in itertools.chain(_beside(roots), _below([*roots, *([Path(workdir)] if workdir else [])])):
        _add(path, traces)
    if not workdir and not traces.outputs:
        raise UserError(
            'config.data does not name a folder that a stage wrote: name one, or pass the folder of a loop as --workdir'
        )
    return traces


def _add(path: Path, traces: Traces) -> None:
    """Add a path to the traces, if it is one."""
    work = _WORK.fullmatch(path.name)
    if work and path.is_dir():
        traces.outputs.add(path.with_name(work[1]).resolve())
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


def named_paths(config: ConfigDict) -> list[Path]:
    """The paths that the config names, existing or not; for a file in a stage's folder, that folder.

    Raw data count only if a stage wrote them.
    """
    names = {key: value.split(',') for key, value in config.data.items() if isinstance(value, str) and key != 'split'}
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
    """The manifest of a stage's finished folder; None for any other folder."""
    path = folder / 'manifest.json'
    manifest = read_json(path, 'remove the folder and run its stage again') if path.exists() else None
    return manifest if isinstance(manifest, dict) and 'stage' in manifest else None


def _below(roots: Iterable[Path]) -> Iterator[Path]:
    """Files and folders below the roots, links followed; the content of unfinished folders is left out."""
    left, seen = [root.resolve() for root in roots if root.is_dir()], set()
    while left:
        folder = left.pop()
        if folder not in seen:
            seen.add(folder)
            for path in folder.iterdir():
                yield path
                if path.is_dir() and not _WORK.fullmatch(path.name):
                    left.append(path.resolve())


def _beside(roots: Iterable[Path]) -> Iterator[Path]:
    """Unfinished work on the roots, and corrections and runs in the same folders, links followed."""
    for each in {each for root in roots for each in (root.absolute(), root.resolve()) if each.parent.is_dir()}:
        for path in each.parent.resolve().iterdir():
            if path.name.startswith(f'.{each.name}.') or path.name.endswith('.corrections.jsonl'):
                yield path
            elif (path / 'run.json').exists():
                yield path.resolve() / 'run.json'
