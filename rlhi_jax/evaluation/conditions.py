"""Held-out trees and preferences under the persona conditions that an evaluation compares."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlhi_jax.data.loader import without_persona
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.data.tree import Interaction, Preference
from rlhi_jax.io.files import digest

CONDITIONS = ('own', 'other', 'empty')  # the user's own persona, another user's persona, no persona
# A persona that says nothing about what a user wants. Reward models may react to any sentence about the user, and the
# condition 'neutral' shows by how much.
NEUTRAL = 'I am a person.'


def user_of(tree: Interaction) -> str:
    """Return the user of a tree; a tree without a user id counts as a separate user."""
    return tree.user_id or f'tree {tree.id}'


def other_personas(owners: Iterable[tuple[str, str]], seed: int) -> dict[str, str]:
    """Map each user who has a persona to the persona of another user, chosen by a shuffle with `seed`.

    Users who would get a persona that is identical to their own are left out.

    Args:
      owners: the user and the persona of each tree; '' stands for no persona. If a user has several personas, the first
        one is used.
      seed: the seed of the shuffle.
    """
    personas: dict[str, str] = {}
    for user, persona in owners:
        if persona:
            personas.setdefault(user, persona)
    users = sorted(personas)
    np.random.default_rng(seed).shuffle(users)
    others = dict(zip(users, [personas[user] for user in users[1:] + users[:1]], strict=True))
    return {user: persona for user, persona in others.items() if persona != personas[user]}


def comparable(personas: Sequence[str], others: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the conditions that an evaluation can compare, and the indices of the items to compare them on.

    An item is included only if it has a persona and gets a different persona under the condition 'other'. If there is
    no such item, all items with a persona are included, and the conditions are 'own' and 'empty'. If no item has a
    persona, all items are included, and 'empty' is the only condition.

    Args:
      personas: the persona of each item's user; '' stands for no persona.
      others: the persona that each item gets under 'other'; '' if it gets none.

    >>> comparable(['I like lists.', ''], ['I like prose.', '']), comparable(['', ''], ['', ''])
    ((('own', 'other', 'empty'), [0]), (('empty',), [0, 1]))
    """
    both = enumerate(zip(personas, others, strict=True))
    if chosen := [i for i, (own, other) in both if own and other not in ('', own)]:
        return CONDITIONS, chosen
    if chosen := [i for i, own in enumerate(personas) if own]:
        return ('own', 'empty'), chosen
    return ('empty',), list(range(len(personas)))


def views(trees: Shards, *, max_trees: int, seed: int) -> dict[str, View]:
    """Return the held-out trees with the personas of each condition, keyed by condition (see `comparable`).

    Args:
      trees: the held-out trees.
      max_trees: the largest number of trees to include, chosen by the digests of their ids; 0 includes all.
      seed: the seed for the choice of other users' personas.
    """
    ids, owners = [], []
    for index in range(len(trees)):
        tree = trees[index]  # reads the tree from disk
        ids.append(tree.id)
        owners.append((user_of(tree), tree.persona))
    others = other_personas(owners, seed)
    conditions, chosen = comparable([persona for _, persona in owners], [others.get(user, '') for user, _ in owners])
    if max_trees:
        chosen = sorted(sorted(chosen, key=lambda i: digest(ids[i]))[:max_trees])

    def with_other(tree: Interaction) -> Interaction:
        return dataclasses.replace(tree, persona=others[user_of(tree)])

    edits: dict[str, Callable] = dict(own=lambda tree: tree, other=with_other, empty=without_persona)
    return {name: View(trees, chosen, edits[name], digest(trees.digest, chosen, name, seed)) for name in conditions}


def asker(preference: Preference) -> str:
    """Return the user of a preference; a preference without a user id counts as one of a separate user."""
    return preference.user_id or f'pair {preference.id}'


def question(preference: Preference, *, swapped: bool = False) -> tuple:
    """Return a preference's system message, prompt, better reply and worse reply; with `swapped`, worse then better."""
    sides = preference.chosen, preference.rejected
    return preference.system, preference.prompt, *(sides[::-1] if swapped else sides)


def opposing_personas(preferences: Sequence[Preference]) -> dict[str, str]:
    """Map the id of a preference to the persona of a user who prefers the other of the same two replies.

    Preferences that no other user contradicts are left out. If several users do, the first one counts.
    """

    contradicting: dict[tuple, str] = {}
    for preference in preferences:
        if preference.persona:
            contradicting.setdefault(question(preference, swapped=True), preference.persona)
    found = {p.id: contradicting.get(question(p), p.persona) for p in preferences}
    return {p.id: found[p.id] for p in preferences if found[p.id] != p.persona}


def conditioned(preferences: Sequence[Preference], *, seed: int) -> dict[str, list[Preference]]:
    """Return the preferences to evaluate, with the personas of each condition, keyed by condition (see `comparable`).

    Under 'other', a preference gets the persona of a user who prefers the other reply, if there is one, or else the
    persona of another user, chosen by a shuffle with `seed`. If there are personas, there is also a condition
    'neutral', under which the persona is `NEUTRAL`.
    """
    shuffled = other_personas(((asker(p), p.persona) for p in preferences), seed)
    opposing = opposing_personas(preferences)
    others = [opposing.get(p.id) or shuffled.get(asker(p), '') for p in preferences]
    conditions, chosen = comparable([p.persona for p in preferences], others)
    personas: dict[str, Callable[[int], str]] = dict(
        own=lambda index: preferences[index].persona,
        other=lambda index: others[index],
        empty=lambda index: '',
        neutral=lambda index: NEUTRAL,
    )
    return {
        name: [dataclasses.replace(preferences[index], persona=personas[name](index)) for index in chosen]
        for name in (*conditions, *(['neutral'] if 'own' in conditions else []))
    }
