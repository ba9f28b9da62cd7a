"""The READMEs state no measured number that is not in a committed results file."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def numbers(value) -> list[float]:
    if isinstance(value, dict | list):
        return [n for each in (value.values() if isinstance(value, dict) else value) for n in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


def stated(text: str) -> list[str]:
    """Numbers as written, those with a point or an exponent: a count may be a setting, these are measurements.

    >>> stated('rose by 0.19 [−0.05, 0.43] within 2.1e-4, of 3 arms in 26.8 minutes of SmolLM2, by 1.0.')
    ['0.19', '-0.05', '0.43', '2.1e-4', '26.8', '1.0']
    """
    return re.findall(r'(?<![\w.-])-?\d+(?:\.\d+)?e-?\d+|(?<![\w.-])-?\d+\.\d+(?!\w|\.\d)', text.replace('−', '-'))


def as_stated(value: float, text: str) -> str:
    """A number in the precision of the text.

    >>> as_stated(0.00021421, '2.1e-4'), as_stated(-0.0251, '-0.025')
    ('2.1e-4', '-0.025')
    """
    if 'e' in text:
        digits = len(text.split('e')[0].partition('.')[2])
        return re.sub(r'e([-+])0*', lambda sign: 'e' + sign[1].replace('+', ''), f'{value:.{digits}e}')
    return f'{value:.{len(text.partition(".")[2])}f}'


def test_measured_numbers_are_those_of_the_results():
    results = [json.loads(path.read_text()) for path in (ROOT / 'tests/benchmarks/results').glob('*.json')]
    measured = numbers(results)
    section = (ROOT / 'README.md').read_text(encoding='utf-8').split('\n## Results measured\n')[1].split('\n## ')[0]
    whole = (ROOT / 'tests' / 'benchmarks' / 'README.md').read_text(encoding='utf-8')
    for text, least in ((section, 20), (whole, 200)):
        found = stated(text)
        assert len(found) > least
        assert not [number for number in found if not any(as_stated(value, number) == number for value in measured)]
