"""Where stages, runs and loops leave what users said, and what is under way."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json

_WORK = re.compile(r'\.(.+)\.(?:tmp|old|journal)', re.DOTALL)  # beside a folder or file that is being written


class Traces(NamedTuple):
    """Paths, none of which leads through a link.

    Attributes:
      outputs: folders that stages have written, or may be writing.
      temporary: files that are half-written.
      corrections: of persona stores.
      reports: of loops; they show pairs.
      runs: folders of training.
    """

    outputs: set[Path]
    temporary: set[Path]
    corrections: set[Path]
    reports: set[Path]
    runs: set[Path]


def find(config: ConfigDict, workdir: str | None) -> Traces:
    """All that is at or below what the config or --workdir names, with links followed, and what is of it beside it.

    Raises:
      UserError: the config names no folder of a stage, or --workdir is none.
    """
    if workdir and not Path(workdir).is_dir():
        raise UserError(f'--workdir={workdir} is no folder: name that of a loop')
    found, roots = Traces(set(), set(), set(), set(), set()), named(config)
    if config.personas.corrections and Path(config.personas.corrections).exists():
        found.corrections.add(Path(config.personas.corrections).resolve())
    for path in itertools.chain(_beside(roots), _below([*roots, *([Path(workdir)] if workdir else [])])):
        work = _WORK.fullmatch(path.name)
        if work and path.is_dir():
            found.outputs.add(path.with_name(work[1]).resolve())
        elif work and path.suffix == '.tmp':
            found.temporary.add(path)
        elif path.name == 'manifest.json' and manifest_of(path.parent):
            found.outputs.add(path.parent)
        elif path.name == 'run.json':
            found.runs.add(path.parent)
        elif path.name == 'report.json' and path.with_name('loop.json').exists():
            found.reports.add(path)
        elif path.name.endswith('.corrections.jsonl'):
            found.corrections.add(path.resolve())
    if not workdir and not found.outputs:
        raise UserError('config.data names no folder of a stage: name what stages wrote, or a loop by --workdir')
    return found


def named(config: ConfigDict) -> list[Path]:
    """What the config names, whether it is there or not; for a file that a stage wrote, its folder.

    Raw data only where a stage wrote it.
    """
    told = {key: value.split(',') for key, value in config.data.items() if isinstance(value, str) and key != 'split'}
    told |= {'': [config.eval.shards, config.personas.corrections]}
    found = []
    for key, name in ((key, name) for key, names in told.items() for name in names if name):
        path = Path(name)
        if path.is_file() and manifest_of(path.parent):
            path = path.parent
        if key != 'raw' or manifest_of(path):
            found.append(path)
    return found


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's finished folder; None for any other."""
    path = folder / 'manifest.json'
    found = read_json(path, 'remove the folder and run its stage again') if path.exists() else None
    return found if isinstance(found, dict) and 'stage' in found else None


def _below(roots: Iterable[Path]) -> Iterator[Path]:
    """Files and folders below those roots that are folders; not what is in folders that are being written."""
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
    """Work on the roots, corrections and runs that lie beside the roots, or beside what they link to."""
    for each in {each for root in roots for each in (root.absolute(), root.resolve()) if each.parent.is_dir()}:
        for path in each.parent.resolve().iterdir():
            if path.name.startswith(f'.{each.name}.') or path.name.endswith('.corrections.jsonl'):
                yield path
            elif (path / 'run.json').exists():
                yield path.resolve() / 'run.json'
