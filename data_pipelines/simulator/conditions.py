"""Choose the persona that a policy sees in each condition of the evaluation on simulated users."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from data_pipelines.core.records import PromptRecord, SimulatedUser
from data_pipelines.persona.store import user_personas
from data_pipelines.simulator.files import tastes_of
from data_pipelines.simulator.tastes import Tastes, opposites
from data_pipelines.simulator.users import oracle_persona
from rlhi_jax.io.files import digest


def personas_by_condition(
    config: ConfigDict, users: Mapping[str, SimulatedUser], prompts: Sequence[PromptRecord], counts: Counter
) -> dict[str, dict[str, str]]:
    """Return personas keyed by prompt id, then by condition.

    The conditions are:

    - own: the user's own persona;
    - other: the persona of a user with opposite tastes;
    - empty: no persona.

    If `config.data.personas` is empty, the personas state the tastes exactly (`oracle_persona`). Otherwise, the folder
    `config.data.personas` provides inferred personas. In this case, the other user is from the same split, and has
    tastes that never change and apply to every request (see `opposing_user`). If no such user exists or a persona is
    missing, the prompt is left out and counted.

    Args:
      users: the simulated users, keyed by user id.
      prompts: the prompts that need personas.
      counts: receives the number of prompts left out for each reason.
    """
    inferred = user_personas(config) if config.data.personas else None
    steady: dict[str, dict[str, Tastes]] = defaultdict(dict)  # split → user → tastes
    for name, user in users.items():
        if not user['flips'] and not user['depends']:
            steady[user['split']][name] = user['tastes']
    personas = {}
    for prompt in prompts:
        user = users[prompt['user_id']]
        other_tastes = opposites(tastes_of(config, user, prompt))
        if inferred is None:
            own, other = prompt['persona'], oracle_persona(user, other_tastes)
        else:
            other_user = opposing_user(prompt['id'], other_tastes, steady[user['split']], inferred)
            if other_user is None:
                counts['dropped_no_opposing_user'] += 1
                continue
            own, other = inferred.get(prompt['user_id'], ''), inferred.get(other_user, '')
            if not own or not other:
                counts['dropped_no_persona'] += 1
                continue
        personas[prompt['id']] = dict(own=own, other=other, empty='')
    return personas


def opposing_user(
    prompt: str, opposite_tastes: Tastes, tastes: Mapping[str, Tastes], personas: Mapping[str, str]
) -> str | None:
    """Return the user who has the most of these tastes, and wants the opposite of none of them.

    Combinations of three tastes have their exact opposite in another split (see `combinations`). Users who have two of
    the tastes, and are silent about the third, then oppose a user most. Among equals, users with a persona come first,
    and a hash of the prompt decides between these, so that requests meet many users. The result is None if nobody has
    two of the tastes, or the only one.

    Args:
      prompt: the id of the prompt.
      opposite_tastes: what a user wants least.
      tastes: the tastes of the users to choose from, keyed by user.
      personas: the inferred personas, keyed by user.
    """

    def shared(user: str) -> int:
        return len(tastes[user].items() & opposite_tastes.items())

    def rank(user: str) -> tuple[int, bool, str]:
        return shared(user), bool(personas.get(user)), digest(prompt, user)

    wanted, least = opposites(opposite_tastes).items(), min(2, len(opposite_tastes))
    fitting = [user for user, theirs in tastes.items() if shared(user) >= least and not theirs.items() & wanted]
    return max(fitting, key=rank, default=None)
