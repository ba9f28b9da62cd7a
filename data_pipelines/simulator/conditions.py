"""The persona conditions under which simulated users are asked to judge a policy."""

import json
from collections import Counter

from ml_collections import ConfigDict

from data_pipelines.core.stage import Record
from data_pipelines.persona.store import of_users
from data_pipelines.simulator.data import request_number, tastes_of
from data_pipelines.simulator.tastes import opposite
from data_pipelines.simulator.users import oracle_persona


def _mirrored(tastes: dict[str, str]) -> dict[str, str]:
    return {pair: opposite(pair, side) for pair, side in tastes.items()}


def conditions(
    config: ConfigDict, users: dict[str, Record], prompts: list[Record], counts: Counter
) -> dict[str, dict[str, str]]:
    """Each prompt's persona in each condition: the user's own, one of opposite tastes, and none.

    With `config.data.personas`, personas are those that the teacher found in the users' earlier conversations, and the
    opposing persona is that of a user of the same split who likes the opposite, always; prompts for which either is
    missing are left out and counted. Else both are the oracle's.
    """
    inferred = of_users(config) if config.data.personas else None
    steady = {
        (user['split'], json.dumps(user['tastes'], sort_keys=True)): name
        for name, user in users.items()
        if not user['flips'] and not user['depends']
    }
    result = {}
    for prompt in prompts:
        user = users[prompt['user_id']]
        now = tastes_of(config, user, request_number(prompt['id']), prompt['messages'][-1]['content'])
        opposing_tastes = _mirrored(now)
        if inferred is None:
            own, opposing = prompt['persona'], oracle_persona(user, opposing_tastes)
        else:
            other = steady.get((user['split'], json.dumps(opposing_tastes, sort_keys=True)))
            if other is None:
                counts['dropped_no_opposing_user'] += 1
                continue
            own, opposing = inferred.get(prompt['user_id'], ''), inferred.get(other, '')
            if not own or not opposing:
                counts['dropped_no_persona'] += 1
                continue
        result[prompt['id']] = dict(own=own, opposing=opposing, empty='')
    return result
