"""How often instructed base samples hit each taste on training prompts: a taste is admitted only from 15 to 70 %.

python tests/benchmarks/admission.py RUN    a run of configs/feasibility.py:oracle; writes results/admission.json

Its candidates were sampled from the base model with the oracle persona in the prompt.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from data_pipelines.sources.tastes import TASTES
from rlhi_jax.files import write_json

RESULTS = Path(__file__).parent / 'results' / 'admission.json'
LOW, HIGH = 0.15, 0.70


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


if __name__ == '__main__':
    run = Path(sys.argv[1])
    users = {user['id']: user for user in records(run / 'raw' / 'users.jsonl')}
    hits: dict[str, list[bool]] = defaultdict(list)
    for record in records(run / 'candidates' / 'records.jsonl'):
        for pair, side in users[record['id'].rsplit('/', 1)[0]]['tastes'].items():
            hits[f'{pair}: {side}'] += [TASTES[pair][side].check(reply['text']) for reply in record['replies']]
    rates = {name: dict(rate=sum(found) / len(found), samples=len(found)) for name, found in sorted(hits.items())}
    for found in rates.values():
        found['admitted'] = LOW <= found['rate'] <= HIGH
    write_json(RESULTS, rates)
    print(json.dumps(rates, indent=2))
