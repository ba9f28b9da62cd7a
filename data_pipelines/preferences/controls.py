"""Control experiments on training data: fewer users, fewer pairs, or the personas of other users."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.passes import at_most
from data_pipelines.core.turns import turn_of
from rlhi_jax.data.tree import Preference
from rlhi_jax.evaluation.conditions import asker, other_personas
from rlhi_jax.io.files import digest

Read = Callable[[Counter], Iterator[Preference]]

CONTROLS = ('max_users', 'max_pairs', 'shuffle_personas')  # keys of `config.data`


def controls_identity(config: ConfigDict) -> dict[str, Any]:
    """Return the controls that are on, and the seed if they use it."""
    on = {name: config.data[name] for name in CONTROLS if config.data[name]}
    return on | ({'seed': config.seed} if config.data.shuffle_personas else {})


def controlled(read: Read, config: ConfigDict) -> Read:
    """Return a function that reads preferences as the controls in `config.data` ask for; `read` reads all of them.

    Like `read`, the returned function takes a Counter, in which it counts the preferences that it leaves out.
    """
    if config.data.max_users:
        read = _of_few_users(read, config.data.max_users)
    # The pairs of one turn, such as a pair and its mirror image, have neighbouring ranks.
    read = at_most(config.data.max_pairs, read, lambda p: (digest(turn_of(p.id)), p.id), 'dropped_over_max_pairs')
    return _shuffled(read, config.seed) if config.data.shuffle_personas else read


def _of_few_users(read: Read, most: int) -> Read:
    users = sorted({asker(preference) for preference in read(Counter())}, key=digest)[:most]

    def of_few_users(counts: Counter) -> Iterator[Preference]:
        for preference in read(counts):
            if asker(preference) in users:
                yield preference
            else:
                counts['dropped_over_max_users'] += 1

    return of_few_users


def _shuffled(read: Read, seed: int) -> Read:
    others = other_personas(((asker(p), p.persona) for p in read(Counter())), seed)

    def shuffled(counts: Counter) -> Iterator[Preference]:
        for preference in read(counts):
            if not preference.persona:
                yield preference
            elif (persona := others.get(asker(preference), preference.persona)) != preference.persona:
                yield dataclasses.replace(preference, persona=persona)
            else:
                counts['dropped_no_other_persona'] += 1

    return shuffled
