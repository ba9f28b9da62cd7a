"""Every regular expression of the packages takes time in proportion to the text, whatever the text."""

import ast
import importlib
import pkgutil
import re
import signal
import time
from collections.abc import Iterator

import pytest
import tiny

import data_pipelines
import rlhi_jax

UNITS = (
    *'a. \n\t([<>`"\'-_*#1@:/\\=|&Aé水,?!;~^$',
    *('a ', 'a.', '1.', '1 ', '1-', '- a\n', '\n\n', 'a\n', '. ', 'a,', 'no ', 'I cannot ', '```', 'def ', 'a(', 'a='),
    *('sorry ', 'Human:', '### Human:', '<|im_start|>', 'xxxxxxx ', 'http://', 'a@b.', '1' * 16 + ' ', '“', '\r\n'),
)  # fmt: skip
SHORT, LONG, FACTOR, LIMIT_SECONDS = 10_000, 100_000, 3, 20


def module_patterns() -> Iterator[re.Pattern]:
    """The compiled patterns that modules hold, also inside tuples, lists and dictionaries."""
    for package in (rlhi_jax, data_pipelines):
        for found in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):
            if not found.name.endswith('__main__'):
                yield from inside(vars(importlib.import_module(found.name)).values())


def inside(values, depth: int = 0) -> Iterator[re.Pattern]:
    for value in values:
        if isinstance(value, re.Pattern):
            yield value
        elif depth < 3 and isinstance(value, tuple | list | dict) and value is not globals():
            yield from inside(value.values() if isinstance(value, dict) else value, depth + 1)


def inline_patterns() -> Iterator[re.Pattern]:
    """The patterns that are written where they are used, as in `re.split(r'...', text)`."""
    for package in ('rlhi_jax', 'data_pipelines'):
        for path in (tiny.ROOT / package).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == 're'
                    if of_re and isinstance(node.args[0], ast.Constant) and node.func.attr != 'escape':
                        yield re.compile(node.args[0].value, re.MULTILINE)


class TooSlow(Exception):
    pass


def seconds(pattern: re.Pattern, text: str) -> float:
    """Processor time in which a pattern finds all its matches in a text; other processes do not lengthen it."""
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        began = time.process_time()
        for _ in pattern.finditer(text):
            pass
        return time.process_time() - began
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def raise_too_slow(*_) -> None:
    raise TooSlow


def test_time_grows_with_the_text_and_no_faster():
    patterns = {(p.pattern, p.flags): p for p in (*module_patterns(), *inline_patterns()) if isinstance(p.pattern, str)}
    assert len(patterns) > 80
    before = signal.signal(signal.SIGALRM, raise_too_slow)
    slow = []
    try:
        for pattern in patterns.values():
            for unit in UNITS:
                text = (unit * LONG)[:LONG]
                try:
                    long = seconds(pattern, text)
                    # Short times say little; a slow one is measured again, because caches may have been cold.
                    for _ in range(5):
                        if long > 0.05 and long > FACTOR * LONG / SHORT * seconds(pattern, text[:SHORT]):
                            long = min(long, seconds(pattern, text))
                        else:
                            break
                    else:
                        slow.append((pattern.pattern[:80], unit, round(long, 2)))
                except TooSlow:
                    slow.append((pattern.pattern[:80], unit, f'over {LIMIT_SECONDS} s'))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not slow


@pytest.mark.parametrize('unit', ['short ', 'not too short. ', "don't be short ", '- ', '\n', 'I like it short, '])
def test_what_reads_remarks_and_replies_is_linear_too(unit):
    """Functions that search a text once for each of their matches."""
    from data_pipelines.persona.audit import remark_fault
    from data_pipelines.simulator.tastes import list_items
    from data_pipelines.text.styles import styles

    for function in (styles, list_items, lambda text: remark_fault(text, '')):
        times = []
        for length in (SHORT, LONG):
            began = time.process_time()
            function((unit * LONG)[:length])
            times.append(time.perf_counter() - began)
        assert times[1] < 0.5 or times[1] < 2 * FACTOR * LONG / SHORT * times[0]
