"""Control experiments on training data: fewer users, fewer pairs, or the personas of other users."""

import dataclasses
from collections import Counter, defaultdict
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
    """Return the controls that are on, and the seed if they use it. Held-out data is never changed."""
    on = {name: config.data[name] for name in CONTROLS if config.data[name] and config.data.split == 'train'}
    return on | ({'seed': config.seed} if 'shuffle_personas' in on else {})


def controlled(read: Read, config: ConfigDict) -> Read:
    """Return a function that reads preferences as the controls in `config.data` ask for; `read` reads all of them.

    Like `read`, the returned function takes a Counter. There it counts the preferences that it leaves out by reason,
    and no longer as `pairs_kept`.
    """
    on = controls_identity(config)
    if not on:
        return read
    chosen = _of_few_users(read, on['max_users']) if 'max_users' in on else read
    # The pairs of one turn, such as a pair and its mirror image, have neighbouring ranks.
    chosen = at_most(on.get('max_pairs', 0), chosen, lambda p: (digest(turn_of(p.id)), p.id), 'dropped_over_max_pairs')
    chosen = _shuffled(chosen, config.seed) if 'shuffle_personas' in on else chosen

    def counted(counts: Counter) -> Iterator[Preference]:
        kept = 0
        for preference in chosen(counts):
            kept += 1
            yield preference
        counts['pairs_kept'] = kept

    return counted


def _of_few_users(read: Read, most: int) -> Read:
    """Keep the preferences of a few users, and only turns all of whose preferences are theirs.

    Otherwise, a pair would lose its mirror image, which is the preference of another user.
    """
    of_turn: dict[str, set[str]] = defaultdict(set)
    for preference in read(Counter()):
        of_turn[turn_of(preference.id)].add(asker(preference))
    users = {*sorted(set().union(*of_turn.values()), key=digest)[:most]}

    def of_few_users(counts: Counter) -> Iterator[Preference]:
        for preference in read(counts):
            if of_turn[turn_of(preference.id)] <= users:
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
