"""How often instructed base samples hit each taste on training prompts: a taste is admitted only from 15 to 70 %.

python tests/benchmarks/admission.py RUN    a run of configs/feasibility.py:oracle; writes results/admission.json

Its candidates were sampled from the base model with the oracle persona in the prompt. A hit is what satisfies a user
who has that taste alone: a valid reply with what the taste asks for. The share of valid replies stands beside it.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from data_pipelines.satisfaction import REQUESTS
from data_pipelines.simulator.tastes import satisfaction, valid
from rlhi_jax.io.files import write_json

RESULTS = Path(__file__).parent / 'results' / 'admission.json'
LOW, HIGH = 0.15, 0.70


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


if __name__ == '__main__':
    run = Path(sys.argv[1])
    users = {user['id']: user for user in records(run / 'raw' / 'users.jsonl')}
    hits: dict[str, list[float]] = defaultdict(list)
    are_valid: dict[str, list[bool]] = defaultdict(list)
    for record in records(run / 'candidates' / 'records.jsonl'):
        request = REQUESTS[record['messages'][-1]['content']]
        for pair, side in users[record['id'].rsplit('/', 1)[0]]['tastes'].items():
            for reply in record['replies']:
                said = reply['text'], request, reply['finished']
                hits[f'{pair}: {side}'].append(satisfaction(*said, {pair: side}))
                are_valid[f'{pair}: {side}'].append(valid(*said))
    rates = {
        name: dict(rate=sum(found) / len(found), valid=sum(are_valid[name]) / len(found), samples=len(found))
        for name, found in sorted(hits.items())
    }
    for found in rates.values():
        found['admitted'] = LOW <= found['rate'] <= HIGH
    write_json(RESULTS, rates)
    print(json.dumps(rates, indent=2))
