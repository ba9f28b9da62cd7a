"""Held-out trees under the persona conditions that an evaluation compares."""

import dataclasses
from collections.abc import Callable

import numpy as np

from rlhi_jax.data.loader import without_persona
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.data.tree import Interaction
from rlhi_jax.io.errors import NothingToEvaluate
from rlhi_jax.io.files import digest

CONDITIONS = ('true', 'empty', 'shuffled')


def user_of(tree: Interaction) -> str:
    """Who is asking; a tree without a user id is a user of its own."""
    return tree.user_id or f'tree {tree.id}'


def strangers(trees: Shards | View, seed: int) -> dict[str, str]:
    """For each user with a persona, that of another user: a shuffle without fixed points, by seed."""
    personas: dict[str, str] = {}
    for index in range(len(trees)):
        tree = trees[index]
        if tree.persona:
            personas.setdefault(user_of(tree), tree.persona)
    users = sorted(personas)
    np.random.default_rng(seed).shuffle(users)
    swapped = dict(zip(users, [personas[user] for user in users[1:] + users[:1]], strict=True))
    return {user: persona for user, persona in swapped.items() if persona != personas[user]}


def views(trees: Shards, *, max_trees: int, seed: int) -> dict[str, View]:
    """The held-out trees under each condition; only trees that have a persona, and whose users have a stranger.

    Raises:
      NothingToEvaluate: fewer than two users have different personas.
    """
    swapped = strangers(trees, seed)
    chosen = [
        i
        for i, tree in enumerate(map(trees.__getitem__, range(len(trees))))
        if tree.persona and tree.persona != swapped.get(user_of(tree), tree.persona)
    ]
    if not chosen:
        raise NothingToEvaluate(
            f'config.eval.shards: {trees.folder} has no two users with different personas, so what a persona is worth '
            'cannot be measured: name other held-out pairs'
        )
    if max_trees:
        chosen = sorted(sorted(chosen, key=lambda i: digest(trees[i].id))[:max_trees])

    def stranger(tree: Interaction) -> Interaction:
        return dataclasses.replace(tree, persona=swapped[user_of(tree)])

    edits: dict[str, Callable] = dict(true=lambda tree: tree, empty=without_persona, shuffled=stranger)
    return {name: View(trees, chosen, edits[name], digest(trees.digest, chosen, name, seed)) for name in CONDITIONS}
