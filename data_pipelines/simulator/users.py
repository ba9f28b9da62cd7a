"""Simulated users: who they are, what they like at which time, what they ask and what they say to a reply."""

import itertools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.core.stage import Record
from data_pipelines.simulator.requests import PHRASINGS, SPLITS, TOPICS, Request, requests
from data_pipelines.simulator.tastes import TASTES, opposite, valid
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Reply

KIND = 'Why'  # in some phrasings of every split: context-dependent users tell requests apart by it


THANKS = {
    'train': ('Thank you, that is just what I wanted.', 'Great, thanks a lot.'),
    'gate': ('Perfect, thanks.',),
    'test': ('Thanks, that was helpful.', 'Lovely, thank you.'),
}


PUZZLED = {
    'train': ('This does not answer my question. Please try again.', 'I asked for something else. Try again, please.'),
    'gate': ('That is not what I asked for.',),
    'test': ('Please answer what I asked.', 'This misses my question. Once more, please.'),
}

User = Record  # id, split, tastes {pair: side}, flips (pair or ''), depends (pair or '')


def combinations(pairs: list[str], split: str) -> list[dict[str, str]]:
    """The combinations of tastes that users of a split may have, the same ones in no other split.

    Test: every two tastes of different pairs. Training and gate: three, the half of even and of odd parity, which are
    balanced: no taste tells of another. Training also: single ones.
    """

    def products(count: int) -> Iterator[tuple[int, dict[str, str]]]:
        for chosen in itertools.combinations(pairs, count):
            for bits in itertools.product((0, 1), repeat=count):
                yield sum(bits) % 2, {pair: list(TASTES[pair])[bit] for pair, bit in zip(chosen, bits, strict=True)}

    if split == 'test':
        return [tastes for _, tastes in products(2)]
    single = [tastes for _, tastes in products(1)] if split == 'train' else []
    return single + [tastes for parity, tastes in products(3) if parity == (split == 'gate')]


def tastes_at(user: User, conversation: int, conversations: int, request: Request) -> dict[str, str]:
    """What a user likes in one conversation: `flips` change sides halfway, `depends` holds for one kind of request."""
    tastes = dict(user['tastes'])
    if user['flips'] and conversation < conversations // 2:
        tastes[user['flips']] = opposite(user['flips'], tastes[user['flips']])
    if user['depends'] and KIND not in request.text:
        tastes[user['depends']] = opposite(user['depends'], tastes[user['depends']])
    return tastes


def oracle_persona(user: User, tastes: dict[str, str]) -> str:
    """What a user would say of themselves who likes this, in the wording of their split."""
    said = []
    for pair, side in tastes.items():
        wordings = TASTES[pair][side].personas[user['split']]
        said.append(wordings[int(digest(user['id'], pair)[:8], 16) % len(wordings)])
    return ' '.join(said)


def held_out_pairs(config: ConfigDict) -> list[str]:
    """The pairs of tastes that no training user has."""
    return [pair for pair in config.simulated.held_out.split(',') if pair]


def population(config: ConfigDict) -> list[User]:
    """Users of all splits by `config.simulated`, each split's combinations of tastes in turn.

    Raises:
      UserError: an unknown pair of tastes is asked for.
    """
    s = config.simulated
    held_out = set(held_out_pairs(config))
    pairs = [*s.pairs.split(','), *sorted(held_out)]
    for pair in pairs:
        if pair not in TASTES:
            raise UserError(f'config.simulated.pairs names {pair!r}: choose from {", ".join(TASTES)}')
    if known_twice := held_out & set(s.pairs.split(',')):
        raise UserError(f'config.simulated.held_out names {min(known_twice)!r}, which config.simulated.pairs has too')
    if len(s.pairs.split(',')) < 3:
        raise UserError(f'config.simulated.pairs is {s.pairs!r}: name at least three, so that splits can differ')
    users = []
    for split in SPLITS:
        known = pairs if split == 'test' else s.pairs.split(',')
        # Users with held-out tastes come last, so that a config can have fewer of them.
        every = sorted(combinations(known, split), key=lambda tastes: bool(tastes.keys() & held_out))
        for number in range(s.users[split]):
            tastes = every[number % len(every)]
            user = dict(id=f'{split}-{number:03d}', split=split, tastes=tastes, flips='', depends='')
            # One user in `special_every` changes their mind, the one after depends on the request.
            if s.special_every and number % s.special_every < 2:
                user[('flips', 'depends')[number % s.special_every]] = next(iter(tastes))
            users.append(user)
    return users


def asked(config: ConfigDict, user: User) -> list[Request]:
    """A user's requests: those of the conversations first, then those of prompts.jsonl; no topic twice."""
    s = config.simulated
    topics, phrasings = TOPICS[user['split']], PHRASINGS[user['split']]
    rng = np.random.default_rng(int(digest(config.seed, user['id'])[:12], 16))
    count = s.conversations + s.prompts
    if count > len(topics):
        raise UserError(
            f'config.simulated.conversations + prompts is {count}, but {user["split"]} has only {len(topics)} topics'
        )
    every = requests(user['split'])  # all phrasings of the first topic, then of the next
    places = rng.permutation(len(topics))[:count] * len(phrasings) + rng.integers(len(phrasings), size=count)
    return [every[place] for place in places]


def complaint(user: User, tastes: dict[str, str], request: Request, reply: Reply, number: int) -> str:
    """What a user says to a reply: what it misses, or thanks. One that was cut off they take as it is."""
    choose = np.random.default_rng(int(digest(user['id'], number)[:12], 16))
    if not valid(reply.text, request, True):
        wordings = PUZZLED[user['split']]
    else:
        missed = [TASTES[pair][side] for pair, side in tastes.items() if not TASTES[pair][side].check(reply.text)]
        wordings = THANKS[user['split']]
        if missed:
            wordings = missed[choose.integers(len(missed))].complaints[user['split']]
    return wordings[choose.integers(len(wordings))]


def hashed(user_id: str) -> str:
    """What stands for a user in conversations, as WildChat's hashed_ip does."""
    return digest('user', user_id)[:32]
