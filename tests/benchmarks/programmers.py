"""Measures the persona store of RealHumanEval's programmers: who has a persona, and what the audit finds.

bash launch/realhumaneval.sh                                           makes the store, and runs this
python tests/benchmarks/programmers.py --config=configs/realhumaneval.py

It also checks on the raw file that no claim comes from a dropped conversation: one of the user's raw calls must equal,
word for word, the kept conversation up to the claim's turn. Writes `results/realhumaneval.json`.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

from absl import app, flags

from data_pipelines.core.inputs import read_records
from data_pipelines.core.record_files import stream_records
from data_pipelines.core.records import Claim, Conversation
from data_pipelines.core.turns import exchange_number
from data_pipelines.persona.store import CLAIMS, USERS
from data_pipelines.persona.store_audit import audit
from rlhi_jax.cli.program import define_config_flag, load_config
from rlhi_jax.io.files import read_json, write_json

RESULTS = Path(__file__).parent / 'results' / 'realhumaneval.json'
ENOUGH = 5  # requests of a user


def requests_by_user(raw: Path) -> dict[str, list[dict]]:
    calls = defaultdict(list)
    for call in stream_records(raw):
        calls[call['user_id']].append(call)
    return calls


def main(_):
    config = load_config(flags.FLAGS.config)
    figures, broken = audit(config)
    personas = Path(config.data.personas)
    calls, requests, conversations = requests_by_user(Path(config.data.raw)), Counter(), {}
    for conversation in read_records(config, 'conversations'):
        conversations[conversation['id']] = conversation
        requests[conversation['user_id']] += exchange_number(len(conversation['messages']))
    often = {user for user, count in requests.items() if count >= ENOUGH}
    known = {user['user_id'] for user in stream_records(personas / USERS) if user['persona']}
    claims = list(stream_records(personas / CLAIMS))
    astray = [claim['id'] for claim in claims if not _in_raw_calls(claim, conversations, calls)]
    results = dict(
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
    write_json(RESULTS, results)
    print(json.dumps(results, indent=1))


def _in_raw_calls(claim: Claim, conversations: dict[str, Conversation], calls: dict[str, list[dict]]) -> bool:
    """Whether the claim's conversation was kept, and a raw call of the user ends with the turn that it quotes."""
    conversation = conversations.get(claim['conversation'])
    if conversation is None:
        return False
    texts = [message['content'] for message in conversation['messages'][: claim['turn_index'] + 1]]
    return claim['quote'] in texts[-1] and any(
        [message['content'].strip() for message in call['messages']] == texts for call in calls[claim['user_id']]
    )


if __name__ == '__main__':
    define_config_flag()
    app.run(main)
