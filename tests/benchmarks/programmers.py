"""What the persona store knows of RealHumanEval's programmers, and what its audit finds.

bash launch/realhumaneval.sh                                           makes the store, and runs this
python tests/benchmarks/programmers.py --config=configs/realhumaneval.py

That no claim comes of what ingest dropped is checked on the raw file as well: a call of that user must say, word for
word, what the kept conversation says up to the claim's turn. Writes `results/realhumaneval.json`.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

from absl import app, flags

from data_pipelines.core.stage import read_records, stream_records
from data_pipelines.persona.store import CLAIMS, USERS
from data_pipelines.persona_store import audit
from rlhi_jax.cli.program import define_config_flag, load_config
from rlhi_jax.io.files import read_json, write_json

RESULTS = Path(__file__).parent / 'results' / 'realhumaneval.json'
ENOUGH = 5  # requests of a user


def requests_by_user(raw: Path) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for call in stream_records(raw):
        found[call['user_id']].append(call)
    return found


def main(_):
    config = load_config(flags.FLAGS.config)
    figures, broken = audit(config)
    personas = Path(config.data.personas)
    calls, requests, talks = requests_by_user(Path(config.data.raw)), Counter(), {}
    for talk in read_records(config, 'conversations'):
        talks[talk['id']] = talk
        requests[talk['user_id']] += len(talk['messages']) // 2
    often = {user for user, count in requests.items() if count >= ENOUGH}
    known = {user['user_id'] for user in stream_records(personas / USERS) if user['persona']}
    claims = list(stream_records(personas / CLAIMS))
    astray = [claim['id'] for claim in claims if not _said(claim, talks, calls)]
    found = dict(
        requests=sum(map(len, calls.values())),
        users=len(calls),
        users_with_5_requests_kept=len(often),
        of_these_with_a_persona=len(often & known),
        others_with_a_persona=len(known - often),
        audit=figures,
        broken=broken,
        claims_not_in_the_raw_file=astray,
        counts={
            name: read_json(Path(config.data[name]) / 'manifest.json', '')['counts']
            for name in ('conversations', 'follow_ups', 'personas')
        },
    )
    write_json(RESULTS, found)
    print(json.dumps(found, indent=1))


def _said(claim: dict, talks: dict[str, dict], calls: dict[str, list[dict]]) -> bool:
    """Whether the claim's conversation was kept, and a raw call of the user ends with the very turn that it quotes."""
    talk = talks.get(claim['conversation'])
    if talk is None:
        return False
    said = [message['content'] for message in talk['messages'][: claim['place'] + 1]]
    return claim['quote'] in said[-1] and any(
        [message['content'].strip() for message in call['messages']] == said for call in calls[claim['user_id']]
    )


if __name__ == '__main__':
    define_config_flag()
    app.run(main)
