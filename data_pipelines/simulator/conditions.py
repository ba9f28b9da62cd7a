"""Choose the persona that a policy sees in each condition of the evaluation on simulated users."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from data_pipelines.core.records import PromptRecord, SimulatedUser
from data_pipelines.persona.store import user_personas
from data_pipelines.simulator.files import tastes_of
from data_pipelines.simulator.tastes import Tastes, opposites
from data_pipelines.simulator.users import oracle_persona


def personas_by_condition(
    config: ConfigDict, users: Mapping[str, SimulatedUser], prompts: Sequence[PromptRecord], counts: Counter
) -> dict[str, dict[str, str]]:
    """Return personas keyed by prompt id, then by condition.

    The conditions are:

    - own: the user's own persona;
    - other: the persona of a user with opposite tastes;
    - empty: no persona.

    If `config.data.personas` is empty, the personas state the tastes exactly (`oracle_persona`). Otherwise, the folder
    `config.data.personas` provides inferred personas. In this case, the other user is from the same split and has
    opposite tastes that never change and apply to every request. If no such user exists or a persona is missing, the
    prompt is left out and counted.

    Args:
      users: the simulated users, keyed by user id.
      prompts: the prompts that need personas.
      counts: receives the number of prompts left out for each reason.
    """
    inferred = user_personas(config) if config.data.personas else None
    steady = {
        _key(user['split'], user['tastes']): name
        for name, user in users.items()
        if not user['flips'] and not user['depends']
    }
    personas = {}
    for prompt in prompts:
        user = users[prompt['user_id']]
        other_tastes = opposites(tastes_of(config, user, prompt))
        if inferred is None:
            own, other = prompt['persona'], oracle_persona(user, other_tastes)
        else:
            other_user = steady.get(_key(user['split'], other_tastes))
            if other_user is None:
                counts['dropped_no_opposing_user'] += 1
                continue
            own, other = inferred.get(prompt['user_id'], ''), inferred.get(other_user, '')
            if not own or not other:
                counts['dropped_no_persona'] += 1
                continue
        personas[prompt['id']] = dict(own=own, other=other, empty='')
    return personas


def _key(split: str, tastes: Tastes) -> tuple[str, str]:
    return split, json.dumps(tastes, sort_keys=True)
