"""Collects reports of `rlhi_jax.loop` into one results file, which the README quotes.

python tests/benchmarks/loop_reports.py NAME RUN [RUN…]    writes tests/benchmarks/results/NAME.json
"""

import sys
from pathlib import Path

from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.loop import time_spent

RESULTS = Path(__file__).parent / 'results'


def collect(run: Path) -> dict:
    """A run's report and settings, with the time it took and without texts of users."""
    report = read_json(run / 'report.json', f'finish the run {run} first')
    report['seconds'] = time_spent(run)
    report['minutes'] = sum(report['seconds'].values()) / 60
    config = read_json(run / 'loop.json', 'run again')['config']
    report['settings'] = {name: config[name] for name in ('simulated', 'sampler', 'loop', 'dpo', 'train', 'rows')}
    return {name: value for name, value in report.items() if name not in ('pairs_to_read', 'notes')}


if __name__ == '__main__':
    name, *runs = sys.argv[1:]
    write_json(RESULTS / f'{name}.json', {Path(run).name: collect(Path(run)) for run in runs})
    print(f'wrote {RESULTS / name}.json')
