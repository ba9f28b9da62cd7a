"""Run a program as several processes on this machine, joined into one JAX program.

    python launch/local.py --processes=2 -- python -m rlhi_jax.train --config=… --workdir=…

Each process has its own devices (`XLA_FLAGS=--xla_force_host_platform_device_count=N` gives each N fake CPU devices).
If one process fails, the others are killed. SIGTERM and Ctrl-C are passed on to all of them, so that a run can save.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

STOPPED = 75  # exit status of a run that saved because it was asked to stop; the other processes will do the same


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def launch(command: list[str], processes: int) -> int:
    """Start `processes` copies of a command, wait for all of them, and return the first non-zero exit status (or 0)."""
    coordinator = {'RLHI_COORDINATOR': f'127.0.0.1:{free_port()}', 'RLHI_NUM_PROCESSES': str(processes)}
    running = [
        subprocess.Popen(command, env={**os.environ, **coordinator, 'RLHI_PROCESS_ID': str(i)}, start_new_session=True)
        for i in range(processes)
    ]

    def pass_on(number, frame):
        del frame
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    status = 0
    while any(process.poll() is None for process in running):
        failed = [process.returncode for process in running if process.poll() not in (None, 0, STOPPED)]
        if failed and not status:
            status = failed[0]
            for process in running:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1)
    return status or next((process.returncode for process in running if process.returncode), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, default=2, help='how many processes to start')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='the command to run, after --')
    arguments = parser.parse_args()
    command = [word for i, word in enumerate(arguments.command) if not (i == 0 and word == '--')]
    if not command or arguments.processes < 1:
        parser.error('--processes must be at least 1, and a command must follow --')
    sys.exit(launch(command, arguments.processes))


if __name__ == '__main__':
    main()
