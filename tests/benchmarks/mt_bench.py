"""Collect the MT-Bench runs of `launch/mt_bench.sh` into one results file, which the README quotes.

python tests/benchmarks/mt_bench.py
"""

import json
from pathlib import Path

from rlhi_jax.files import read_json, write_json

RUNS = Path('runs/mt_bench')
RESULTS = Path(__file__).parent / 'results' / 'mt_bench.json'


def collect(run: Path) -> dict:
    """A run's newest evaluation, its training settings and its first and last training metrics."""
    evaluation = max((run / 'evaluation').glob('*.json'), key=lambda path: read_json(path, '')['step'])
    steps = [json.loads(line) for line in (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    config = read_json(run / 'run.json', '')['config']
    return {
        'settings': {name: config[name] for name in ('rows', 'train', 'optimizer', 'dpo', 'reward')},
        'training': {'pairs': int(sum(s['pairs'] for s in steps)), 'first': steps[0], 'last': steps[-1]},
        'evaluation': read_json(evaluation, ''),
    }


if __name__ == '__main__':
    rows = read_json(RUNS / 'rows' / 'manifest.json', '')['counts']
    write_json(RESULTS, {'rows': rows, **{name: collect(RUNS / name) for name in ('reward', 'dpo')}})
    print(f'wrote {RESULTS}')
