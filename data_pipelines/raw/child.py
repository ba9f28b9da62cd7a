"""Runs work in a child process of a stage. The child exits soon after the stage ends, even if the stage is killed."""

import os
import sys
import threading
import time
from collections.abc import Callable

from rlhi_jax.cli.program import refusing

_WATCH_SECONDS = 0.5


def run_worker(write: Callable[..., None]) -> None:
    """Run `write` in this process, which is a child of a stage's process.

    This process exits soon after the stage ends, even if the stage is killed. Its flags are --parent (the process id
    of the stage) and one flag for each argument of `write`. The arguments are passed to `write` as text.
    """
    arguments = dict(argument.removeprefix('--').split('=', 1) for argument in sys.argv[1:])
    parent = int(arguments.pop('parent'))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with refusing():
        write(**arguments)
