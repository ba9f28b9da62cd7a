"""Progress as a terminal shows it, and as lines elsewhere."""

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny

from rlhi_jax.io import progress
from rlhi_jax.io.progress import Progress, duration

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


def test_a_short_job_prints_nothing_elsewhere():
    done = subprocess.run([sys.executable, '-c', NESTED], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ''


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves, in seconds."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now.seconds)
    return now


def printed(clock, capsys, total: int, counts: dict[float, int], **options) -> list[str]:
    """The lines that a job prints, given how much is done at which second after its start."""
    with Progress('x', total, unit='items', **options) as shown:
        start = clock.seconds
        for second, done in counts.items():
            clock.seconds = start + second
            shown.update(done)
    return capsys.readouterr().err.splitlines()


def test_the_time_before_the_first_line_says_nothing_about_the_rest(clock, capsys):
    compiled = {300: 1, 312: 3, 324: 5, 400: 20}
    assert printed(clock, capsys, 20, compiled) == [
        'x: 1/20 items',
        'x: 3/20 items, 0.167/s, 1 min 42 s left',  # 17 items at 2 in 12 s
        'x: 5/20 items, 0.167/s, 1 min 30 s left',
        'x: 20/20 items in 6 min 40 s',
    ]
    cached = {0.5: 9000, 10: 9010, 20: 9020}
    assert printed(clock, capsys, 10000, cached)[1] == 'x: 9020/10000 items, 1/s, 16 min 20 s left'


def test_the_rate_is_that_of_the_last_minute(clock, capsys):
    counts = {10 * line: 100 * line for line in range(1, 10)} | {90 + 10 * line: 900 + line for line in range(1, 8)}
    rates = [line.split(', ')[1] for line in printed(clock, capsys, 2000, counts)[1:]]
    assert rates[:8] == ['10/s'] * 8
    assert rates[8] == '8.35/s' and rates[13:] == ['0.1/s'] * 2  # 501 in 60 s; then six intervals of 1 in 10 s


def test_earlier_work_is_not_counted(clock, capsys):
    replayed = {12: 1, 24: 30, 36: 500, 48: 512, 60: 524}  # the first 500 were done by a killed process
    assert printed(clock, capsys, 1000, replayed, done=500) == [
        'x: 500/1000 items',
        'x: 500/1000 items',
        'x: 500/1000 items',
        'x: 512/1000 items',
        'x: 524/1000 items, 1/s, 7 min 56 s left',
    ]


def test_standstill_has_no_rate(clock, capsys):
    assert printed(clock, capsys, 9, {10: 3, 20: 3, 30: 3})[1:] == ['x: 3/9 items'] * 2


def test_a_nested_job_prints_no_last_line(clock, capsys):
    with Progress('outer', 1, unit='blocks') as outer:
        assert printed(clock, capsys, 2, {15: 1, 16: 2}) == ['x: 1/2 items']
        clock.seconds += 20
        outer.update(1)
    assert capsys.readouterr().err == 'outer: 1/1 blocks in 36 s\n'


@pytest.mark.parametrize(
    'seconds, words',
    [
        (0, '0.0 s'),
        (9.94, '9.9 s'),
        (59.9, '59 s'),
        (60, '1 min 0 s'),
        (3599, '59 min 59 s'),
        (86399, '23 h 59 min'),
        (90000, '1 d 1 h'),
    ],
)
def test_times_in_words(seconds, words):
    assert duration(seconds) == words
