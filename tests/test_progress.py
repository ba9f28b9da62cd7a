"""Progress as a terminal shows it, and as lines elsewhere."""

import os
import pty
import re
import subprocess
import sys

import tiny

NESTED = """
from rlhi_jax.io.progress import Progress
with Progress('outer', 3, unit='blocks') as outer:
    for block in range(3):
        with Progress('inner', 2, unit='items') as inner:
            for item in range(2):
                inner.update(item + 1)
        outer.update(block + 1)
"""


def on_a_terminal(program: str) -> list[str]:
    """The lines that remain on a terminal after a program has ended."""
    ours, theirs = pty.openpty()
    env = dict(os.environ, TERM='xterm', COLUMNS='100', LINES='40')
    child = subprocess.Popen([sys.executable, '-c', program], stderr=theirs, cwd=tiny.ROOT, env=env)
    os.close(theirs)
    written = b''
    while True:
        try:
            written += (data := os.read(ours, 65536))
        except OSError:  # Linux reports the closed other end as an error
            break
        if not data:
            break
    assert child.wait() == 0
    lines, row = [''], 0
    for code, text in re.findall(r'(\x1b\[[?0-9;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)', written.decode()):
        if code == '\n':
            row += 1
            lines += [''] * (row + 1 - len(lines))
        elif code.endswith('A'):
            row -= int(code[2:-1] or 1)
        elif code.endswith('K'):
            lines[row] = ''
        lines[row] += text
    return [line for line in lines if line.strip()]


def test_nested_bar_leaves_one_line():
    (line,) = on_a_terminal(NESTED)
    assert line.startswith('outer') and '3/3' in line and 'inner' not in line


def test_only_the_outer_one_prints_a_last_line_elsewhere():
    done = subprocess.run([sys.executable, '-c', NESTED], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert [line.split(',')[0] for line in done.stderr.splitlines()] == ['outer: 3/3 blocks']


def test_finished_work_has_nothing_to_wait_for():
    program = "from rlhi_jax.io.progress import Progress\nwith Progress('x', 3, unit='items', done=3) as p: p.update(3)"
    done = subprocess.run([sys.executable, '-c', program], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == 'x: 3/3 items, 0/s, ETA 00:00:00\n'
