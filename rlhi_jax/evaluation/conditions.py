"""Held-out trees under the persona conditions that an evaluation compares."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlhi_jax.data.loader import without_persona
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.data.tree import Interaction
from rlhi_jax.io.files import digest

CONDITIONS = ('own', 'other', 'empty')  # the user's own persona, another user's persona, no persona


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


def views(trees: Shards, *, max_trees: int, seed: int) -> dict[str, View]:
    """Return the held-out trees with the personas of each condition, keyed by condition.

    A tree is included only if it has a persona and gets a different persona under the condition 'other'. If no two
    users have different personas, all trees with a persona are included, and the conditions are 'own' and 'empty'. If
    no tree has a persona, all trees are included, and 'empty' is the only condition.

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
    chosen = [index for index, (user, persona) in enumerate(owners) if persona and persona != others.get(user, persona)]
    conditions: Sequence[str] = CONDITIONS
    if not chosen:
        conditions, chosen = ('own', 'empty'), [index for index, (_, persona) in enumerate(owners) if persona]
    if not chosen:
        conditions, chosen = ('empty',), list(range(len(trees)))
    if max_trees:
        chosen = sorted(sorted(chosen, key=lambda i: digest(ids[i]))[:max_trees])

    def with_other(tree: Interaction) -> Interaction:
        return dataclasses.replace(tree, persona=others[user_of(tree)])

    edits: dict[str, Callable] = dict(own=lambda tree: tree, other=with_other, empty=without_persona)
    return {name: View(trees, chosen, edits[name], digest(trees.digest, chosen, name, seed)) for name in conditions}
