"""Run online training, but kill this process with SIGKILL in the middle of a phase. `test_online` starts this program.

python tests/killed_online.py PHASE --config=… --workdir=…
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.preferences import rounds
from rlhi_jax import online
from rlhi_jax.cli import program


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def answers(sample: Callable) -> Callable:
    """In the second round, die after the third answer."""
    calls = itertools.count(1)

    def dying(*args: Any):
        doomed = next(calls) == 2
        for done in sample(*args):
            yield done
            if doomed and done == 3:
                die()

    return dying


def at_call(number: int, *, after: bool = False) -> Callable[[Callable], Callable]:
    """Die before a call of a function, or after it."""

    def wrapped(function: Callable) -> Callable:
        calls = itertools.count(1)

        def dying(*args: Any):
            doomed = next(calls) == number
            if doomed and not after:
                die()
            result = function(*args)
            if doomed:
                die()
            return result

        return dying

    return wrapped


def in_a_line(as_line: Callable) -> Callable:
    """Die after half of a line is on disk: that of the second round's second answer."""
    calls = itertools.count(1)

    def dying(record: dict) -> bytes:
        line = as_line(record)
        if next(calls) == 11:
            path = next(path for path in Path(sys.argv[-1].partition('=')[2]).glob('rounds/000002/replies-0.jsonl'))
            with open(path, 'ab') as file:
                file.write(line[: len(line) // 2])
            die()
        return line

    return dying


PHASES = dict(
    answers=(rounds.RoundFolder, 'sample', answers),
    line=(rounds, 'as_line', in_a_line),
    scores=(rounds, 'best_and_worst', at_call(4)),  # in the second round of three requests
    pairs=(rounds, 'write_json', at_call(2)),  # the second round has pairs.jsonl, but no round.json
    step=(online.LateMetrics, 'push', at_call(4)),
    checkpoint=(online.RunCheckpoints, 'save', at_call(2, after=True)),  # started, but not finished
)

if __name__ == '__main__':
    owner, name, wrap = PHASES[sys.argv.pop(1)]
    setattr(owner, name, wrap(getattr(owner, name)))
    program.define_flags()
    program.start()
    program.run(online.main)
