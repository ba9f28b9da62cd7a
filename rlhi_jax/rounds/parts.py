"""The parts of a round: stages, training runs, evaluations and exports, and whether their output is up to date."""

import enum
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhi_jax.io.errors import UserError


class State(enum.Enum):
    """Whether a part's output exists, and whether it matches the part's current input and settings."""

    MISSING = 'missing'
    UP_TO_DATE = 'up to date'
    OUT_OF_DATE = 'out of date'


def state_of_run(workdir: Path, check: Callable[[], None]) -> State:
    """Return the state of a training run's workdir; `UP_TO_DATE` does not mean that the run has finished.

    Args:
      workdir: the workdir.
      check: a function that raises a UserError if the run in the workdir differs from the run that would be started
        now, or if an input is missing or damaged. The workdir is then out of date.
    """
    if not (workdir / 'run.json').exists():
        return State.MISSING
    try:
        check()
    except UserError:
        return State.OUT_OF_DATE
    return State.UP_TO_DATE


class Part(NamedTuple):
    """A part of a round.

    Attributes:
      name: the part's name, such as 'dpo: pairs'.
      folder: the folder that the part writes.
      reads: the names of the earlier parts whose output this part reads.
      state: a function that returns the state of the folder.
      make: a function that brings the folder up to date. Its argument says whether to replace a folder that is out of
        date.
      trains: whether the part is a training run.
    """

    name: str
    folder: Path
    reads: tuple[str, ...]
    state: Callable[[], State]
    make: Callable[[bool], None]
    trains: bool = False


def chosen(parts: Sequence[Part], stage: str) -> frozenset[str]:
    """Return the names of the parts that run a stage; if several training runs use the stage, each has its own part.

    Raises:
      UserError: the round has no such stage.
    """
    names = frozenset(part.name for part in parts if part.name == stage or part.name.endswith(f': {stage}'))
    if not names:
        known = sorted({part.name.rpartition(': ')[2] for part in parts})
        raise UserError(f'--redo={stage} does not name a stage of this loop: choose one of {", ".join(known)}')
    return names


def to_redo(parts: Sequence[Part], forced: frozenset[str]) -> list[Part]:
    """Return the parts whose output exists but is, or may be, out of date.

    A part's output may be out of date if the part reads another part that is missing or out of date. Whether it really
    is out of date is known only after that other part has been made again.

    Args:
      parts: the parts, ordered so that each part follows the parts that it reads.
      forced: the names of parts to treat as out of date in any case.
    """
    affected, redone = set(), []
    for part in parts:
        state = part.state()
        if state is State.MISSING:
            affected.add(part.name)
        elif state is State.OUT_OF_DATE or part.name in forced or affected & set(part.reads):
            affected.add(part.name)
            redone.append(part)
    return redone


def announcement(redone: Sequence[Part]) -> str:
    """Return text that lists the parts to make again, with training runs in a separate list."""
    lines = ['Out of date, or made from files that are missing or out of date:']
    lines += [f'  {part.name} ({part.folder})' for part in redone if not part.trains]
    if runs := [part for part in redone if part.trains]:
        lines.append('Training runs that are removed and started again if their pairs or settings have changed:')
        lines += [f'  {part.name} ({part.folder})' for part in runs]
    return '\n'.join(lines)


def confirm(redone: Sequence[Part], ask: bool) -> None:
    """Print the parts to make again and, if `ask` is set, ask whether to continue.

    Raises:
      UserError: the answer is not 'y' or 'yes', or standard input is not a terminal.
    """
    if not redone:
        print('Nothing is out of date.', flush=True)
        return
    print(announcement(redone), flush=True)
    if not ask:
        return
    if not sys.stdin.isatty():
        raise UserError(
            '--redo asks for confirmation, but standard input is not a terminal: pass --yes to continue without asking'
        )
    if input('Make these again? [y/N] ').strip().lower() not in ('y', 'yes'):
        raise UserError('--redo was not confirmed, so nothing was changed: run the command again and answer y')
