"""Programs run by benchmarks: how long they take, and how much memory all their processes hold."""

import os
import subprocess
import sys
import time
from pathlib import Path


def session_gib(session: int) -> float:
    """Memory of all processes of a session, pages that several share counted once."""
    total = 0
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            if int((folder / 'stat').read_text().rpartition(')')[2].split()[3]) == session:
                lines = (folder / 'smaps_rollup').read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith('Pss:'))
        except (OSError, StopIteration, ValueError):
            continue
    return total / 2**20


def program(module: str, *arguments: str) -> subprocess.Popen:
    """A program of ours, in a session of its own."""
    command = [sys.executable, '-m', module, *arguments]
    return subprocess.Popen(command, env=os.environ | dict(JAX_PLATFORMS='cpu'), start_new_session=True)


def measured(process: subprocess.Popen) -> tuple[float, float]:
    """Seconds until a program ends, and its peak memory in GiB.

    Raises:
      RuntimeError: it fails.
    """
    begun, peak = time.monotonic(), 0.0
    while process.poll() is None:
        peak = max(peak, session_gib(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f'{process.args} failed')
    return time.monotonic() - begun, peak
