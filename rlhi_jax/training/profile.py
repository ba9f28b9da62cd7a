"""Writes a profiler trace of some train steps."""

from pathlib import Path
from typing import Any

import jax

from rlhi_jax.parallel import processes


class StepProfiler:
    """A context manager that traces up to `num_steps` of the steps in its `with` block.

    The trace is written to a folder that TensorBoard or Perfetto can read. Tracing starts after this process's first
    step, so the trace does not include loading and initial allocations. Each process traces its own devices.
    """

    def __init__(self, folder: Path, num_steps: int):
        self._folder, self._num_steps = folder, num_steps
        self._traced = 0
        self._tracing = False

    def __enter__(self) -> 'StepProfiler':
        return self

    def __exit__(self, *error) -> None:
        if self._tracing:
            self._stop()

    def after_step(self, outputs: Any) -> None:
        """Start, continue or stop the trace after a dispatched step.

        Before the trace is started or stopped, wait for the step's outputs.
        """
        if self._tracing:
            self._traced += 1
            if self._traced == self._num_steps:
                jax.block_until_ready(outputs)
                self._stop()
        elif self._num_steps and not self._traced:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False
        if processes.is_main():
            print(f'{self._folder}: profile of {self._traced} steps')
