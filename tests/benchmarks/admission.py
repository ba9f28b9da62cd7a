"""How often base samples meet each taste when the persona states it: tastes are admitted from 15 to 70 %.

python tests/benchmarks/admission.py RUN    reads a run of configs/feasibility.py:oracle, writes results/admission.json

The candidates of such a run were sampled from the base model for training prompts, with the oracle's persona. A hit is
a valid reply that passes the check of one side of one taste.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from data_pipelines.core.record_files import RECORDS, load_records
from data_pipelines.simulator.files import USERS, request_of
from data_pipelines.simulator.tastes import satisfaction, valid
from rlhi_jax.io.files import write_json

RESULTS = Path(__file__).parent / 'results' / 'admission.json'
LOW, HIGH = 0.15, 0.70


def rates(run: Path) -> dict[str, dict]:
    """The share of hits, and of valid replies, among samples for users with each side of each taste."""
    users = {user['id']: user for user in load_records(run / 'raw' / USERS)}
    hits: dict[str, list[float]] = defaultdict(list)
    are_valid: dict[str, list[bool]] = defaultdict(list)
    for candidate in load_records(run / 'candidates' / RECORDS):
        request = request_of(candidate)
        for taste, side in users[candidate['id'].rsplit('/', 1)[0]]['tastes'].items():
            for reply in candidate['replies']:
                checked = reply['text'], request, reply['finished']
                hits[f'{taste}: {side}'].append(satisfaction(*checked, {taste: side}))
                are_valid[f'{taste}: {side}'].append(valid(*checked))
    result = {}
    for name in sorted(hits):
        samples = len(hits[name])
        rate = sum(hits[name]) / samples
        share_valid = sum(are_valid[name]) / samples
        result[name] = dict(rate=rate, valid=share_valid, samples=samples, admitted=LOW <= rate <= HIGH)
    return result


if __name__ == '__main__':
    measured = rates(Path(sys.argv[1]))
    write_json(RESULTS, measured)
    print(json.dumps(measured, indent=2))
