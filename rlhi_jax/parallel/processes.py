"""Starts this process as one of several, and stops all of them together when one of them is asked to stop."""

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhi_jax.io.errors import UserError

COORDINATOR, PROCESS_ID, NUM_PROCESSES = 'RLHI_COORDINATOR', 'RLHI_PROCESS_ID', 'RLHI_NUM_PROCESSES'


def start() -> None:
    """Join the other processes, if the launcher started any (see `launch/`).

    `RLHI_COORDINATOR` is `auto` on TPU pods, which know their own topology. Elsewhere it is `host:port`, and
    `RLHI_PROCESS_ID` and `RLHI_NUM_PROCESSES` must also be set.

    Raises:
      UserError: one of these variables is missing or is not a number.
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
        raise UserError(f'{COORDINATOR} is set: also set {PROCESS_ID} and {NUM_PROCESSES} to numbers') from None
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(coordinator, count, process)


def is_main() -> bool:
    """Whether this process is the one that writes files and prints output."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_agreement(value: str, what: str) -> None:
    """Raise an error if the processes see different files; otherwise they would wait for each other forever.

    Args:
      value: a hex digest of the files that this process sees.
      what: describes the files in the error.

    Raises:
      UserError: the processes have different values.
    """
    if jax.process_count() > 1:
        start = np.frombuffer(bytes.fromhex(value)[:4], np.int32)
        if len(set(multihost_utils.process_allgather(start).ravel().tolist())) > 1:
            raise UserError(f'the processes do not agree on {what}: use a folder that all hosts mount')


class Preemption:
    """Records whether SIGTERM or a first Ctrl-C asked the run to stop."""

    def __init__(self):
        self._asked = False
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, self._ask)
        if jax.process_count() == 1:  # otherwise JAX's handler tells every process
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
        """True in every process at the same step, once any process has been asked to stop."""
        if jax.process_count() == 1:
            return self._asked
        if self._asked:  # Ctrl-C in one process: pass it on as the signal that JAX relays
            os.kill(os.getpid(), signal.SIGTERM)
            self._asked = False
        return multihost_utils.reached_preemption_sync_point(step)
