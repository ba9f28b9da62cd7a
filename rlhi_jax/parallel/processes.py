"""Coordinates the processes of one run: they start together, wait for each other and stop at the same step."""

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhi_jax.io.errors import UserError

COORDINATOR, PROCESS_ID, NUM_PROCESSES = 'RLHI_COORDINATOR', 'RLHI_PROCESS_ID', 'RLHI_NUM_PROCESSES'


def start() -> None:
    """Connect to the other processes of the run, if `RLHI_COORDINATOR` is set (see `launch/`).

    On TPU pods, which know their own topology, `RLHI_COORDINATOR` is `auto`. Elsewhere it is `host:port`, and
    `RLHI_PROCESS_ID` and `RLHI_NUM_PROCESSES` must also be set.

    Raises:
      UserError: `RLHI_COORDINATOR` is `host:port`, and one of the other two variables is missing or is not an integer.
    """
    coordinator = os.environ.get(COORDINATOR)
    if coordinator is None:
        return
    if coordinator == 'auto':
        jax.distributed.initialize()
        return
    try:
        process, count = int(os.environ[PROCESS_ID]), int(os.environ[NUM_PROCESSES])
    except (KeyError, ValueError):
        raise UserError(
            f'{COORDINATOR} is set, but {PROCESS_ID} or {NUM_PROCESSES} is missing or no integer: set both to integers'
        ) from None
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(coordinator, count, process)


def index() -> int:
    """Return the number of this process, from 0."""
    return jax.process_index()


def count() -> int:
    """Return the number of processes of the run."""
    return jax.process_count()


def is_main() -> bool:
    """Return whether this is the one process that writes files and prints output."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has called this function with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_agreement(value: str, what: str) -> None:
    """Raise an error if the processes see different files.

    Without this check, such processes could wait for each other forever.

    Args:
      value: a hex digest of the files that this process sees.
      what: a description, for the error message, of the folder that contains the files.

    Raises:
      UserError: the processes passed different values.
    """
    if jax.process_count() > 1:
        start = np.frombuffer(bytes.fromhex(value)[:4], np.int32)
        if len(set(multihost_utils.process_allgather(start).ravel().tolist())) > 1:
            raise UserError(f'the processes see different files in {what}: use a folder that all hosts mount')


class Preemption:
    """A record of whether SIGTERM or Ctrl-C has asked the run to stop.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self):
        self._asked = False
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, self._ask)
        if jax.process_count() == 1:  # otherwise, JAX's own handler relays SIGTERM to every process
            signal.signal(signal.SIGTERM, self._ask)

    def release(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        del frame
        self._asked = True
        signal.signal(number, signal.SIG_DFL)  # a second signal stops the run at once

    def reached(self, step: int) -> bool:
        """Return whether to stop at this step.

        Once any process has been asked to stop, the result becomes True in every process at the same step.
        """
        if jax.process_count() == 1:
            return self._asked
        if self._asked:  # Ctrl-C in this process: send SIGTERM, which JAX relays to every process
            os.kill(os.getpid(), signal.SIGTERM)
            self._asked = False
        return multihost_utils.reached_preemption_sync_point(step)
