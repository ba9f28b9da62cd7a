"""Builds interaction trees from preferences by merging the opening messages that several preferences share."""

from collections.abc import Iterable, Iterator, Sequence

from rlhi_jax.data.tree import NONE, Interaction, Message, Pair, Preference, Turns
from rlhi_jax.io.files import digest


class _Trie:
    def __init__(self):
        self.messages: list[Message] = []
        self.children: dict[tuple[int, str, str], int] = {}

    def insert(self, parent: int, turns: Iterable[tuple[str, str]]) -> int:
        for role, content in turns:
            key = (parent, role, content)
            if key not in self.children:
                self.children[key] = len(self.messages)
                self.messages.append(Message(parent, role, content))
            parent = self.children[key]
        return parent


def root(preference: Preference) -> tuple[str, str, str, str]:
    """Return the key that all preferences in a tree share: user, persona, system text and first message."""
    return preference.user_id, preference.persona, preference.system, preference.prompt[0][1]


def preferences_of(tree: Interaction) -> Iterator[Preference]:
    """Yield the preferences that a tree was grown from."""

    def turns(nodes: Sequence[int]) -> Turns:
        return tuple((tree.messages[node].role, tree.messages[node].content) for node in nodes)

    for pair in tree.pairs:
        prompt = tree.path(pair.prompt)
        chosen_prompt = [] if pair.chosen_prompt == NONE else tree.path(pair.chosen_prompt)
        yield Preference(
            id=pair.id,
            prompt=turns(prompt),
            chosen=turns(tree.path(pair.chosen)[len(chosen_prompt or prompt) :]),
            rejected=turns(tree.path(pair.rejected)[len(prompt) :]),
            system=tree.system,
            persona=tree.persona,
            user_id=tree.user_id,
            weight=pair.weight,
            margin=pair.margin,
            chosen_prompt=turns(chosen_prompt),
            tied=pair.tied,
        )


def grow_trees(preferences: Iterable[Preference]) -> list[Interaction]:
    """Join all preferences with the same `root` into one tree; return the trees in order of first appearance.

    A message that two preferences share (the same text after the same history) becomes one node. For example, if a
    conversation continued after a rejected reply, the reply's node is also part of the prompts of later pairs.
    """
    tries: dict[tuple[str, ...], _Trie] = {}
    pairs: dict[tuple[str, ...], list[Pair]] = {}
    for preference in preferences:
        key = root(preference)
        trie = tries.setdefault(key, _Trie())
        prompt = trie.insert(NONE, preference.prompt)
        chosen_prompt = trie.insert(NONE, preference.chosen_prompt)
        pair = Pair(
            preference.id,
            prompt,
            trie.insert(prompt if chosen_prompt == NONE else chosen_prompt, preference.chosen)
            if preference.chosen
            else NONE,
            trie.insert(prompt, preference.rejected) if preference.rejected else NONE,
            preference.weight,
            preference.margin,
            chosen_prompt,
            preference.tied,
        )
        pairs.setdefault(key, []).append(pair)
    return [
        Interaction(digest(*key)[:16], tuple(trie.messages), tuple(pairs[key]), *key[:3]) for key, trie in tries.items()
    ]
