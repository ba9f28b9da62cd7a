"""Simulated users: their tastes at any time, their requests and their follow-ups to replies."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.core.records import SPLITS, SimulatedUser
from data_pipelines.simulator.requests import PHRASINGS, TOPICS, Request, requests
from data_pipelines.simulator.tastes import TASTES, Tastes, opposite, opposites, valid
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Reply

KIND = 'Why'  # occurs in some phrasings of every split; marks the kind of request that a taste may depend on

THANKS = {
    'train': ('Thank you, that is just what I wanted.', 'Great, thanks a lot.'),
    'validation': ('Perfect, thanks.',),
    'test': ('Thanks, that was helpful.', 'Lovely, thank you.'),
}
PUZZLED = {
    'train': ('This does not answer my question. Please try again.', 'I asked for something else. Try again, please.'),
    'validation': ('That is not what I asked for.',),
    'test': ('Please answer what I asked.', 'This misses my question. Once more, please.'),
}

# Ids seed the choice of requests and wordings, so other prefixes would change the output.
ID_PREFIXES = {'train': 'train', 'validation': 'gate', 'test': 'test'}


def hashed(user_id: str) -> str:
    """Return the id that stands for a simulated user in conversations, like WildChat's hashed_ip."""
    return digest('user', user_id)[:32]


def request_id(user: SimulatedUser, number: int) -> str:
    """Return the id of a user's request. Requests are numbered from 0, starting with those in conversations."""
    return f'{user["id"]}/{number}'


def request_number(name: str) -> int:
    """Return the number in a request's id.

    >>> request_number('test-000/3')
    3
    """
    return int(name.rsplit('/', 1)[1])


def population(config: ConfigDict) -> list[SimulatedUser]:
    """Return the users of all splits, as set in `config.simulated`.

    Within each split, the combinations of tastes are assigned to users in turn, starting over after the last one.

    Raises:
      UserError: a taste is unknown or is in both `tastes` and `held_out`, or `tastes` lists fewer than three tastes.
    """
    settings = config.simulated
    tastes, held_out = settings.tastes.split(','), held_out_tastes(config)
    _check_tastes(tastes, held_out)
    users = []
    for split in SPLITS:
        known = [*tastes, *sorted(set(held_out))] if split == 'test' else tastes
        # Users with held-out tastes come last, so that a config can have fewer of them.
        choices = sorted(combinations(known, split), key=lambda choice: not choice.keys().isdisjoint(held_out))
        for number in range(settings.users[split]):
            choice = choices[number % len(choices)]
            name = f'{ID_PREFIXES[split]}-{number:03d}'
            user = SimulatedUser(id=name, split=split, tastes=choice, flips='', depends='')
            # Of every `special_every` users, the first has the field `flips` set and the second has `depends` set.
            if settings.special_every and number % settings.special_every < 2:
                user[('flips', 'depends')[number % settings.special_every]] = next(iter(choice))
            users.append(user)
    return users


def held_out_tastes(config: ConfigDict) -> list[str]:
    """Return the tastes that only users in the test split have."""
    return [taste for taste in config.simulated.held_out.split(',') if taste]


def _check_tastes(tastes: Sequence[str], held_out: Sequence[str]) -> None:
    for taste in (*tastes, *sorted(held_out)):
        if taste not in TASTES:
            key = 'tastes' if taste in tastes else 'held_out'
            raise UserError(f'config.simulated.{key}: {taste!r} is not a known taste: choose from {", ".join(TASTES)}')
    if in_both := set(held_out) & set(tastes):
        raise UserError(
            f'config.simulated.held_out: {min(in_both)!r} is also in config.simulated.tastes: remove it from one of '
            'the two keys'
        )
    if len(tastes) < 3:
        raise UserError(
            f'config.simulated.tastes is {",".join(tastes)!r}: list at least three tastes, because no combination of '
            'tastes may occur in two splits'
        )


def combinations(tastes: Sequence[str], split: str) -> list[Tastes]:
    """Return the combinations of tastes that users in a split may have. No combination occurs in two splits.

    - Test users have two tastes, with all combinations of sides.
    - Training and validation users have three tastes. The number of tastes for which they prefer the second side in
      `TASTES` is even for training users and odd for validation users. In both splits, the sides are balanced, so no
      taste predicts another.
    - Some training users have a single taste.
    """

    def products(count: int) -> Iterator[tuple[int, Tastes]]:
        for chosen in itertools.combinations(tastes, count):
            for bits in itertools.product((0, 1), repeat=count):
                yield sum(bits) % 2, {taste: list(TASTES[taste])[bit] for taste, bit in zip(chosen, bits, strict=True)}

    if split == 'test':
        return [choice for _, choice in products(2)]
    single = [choice for _, choice in products(1)] if split == 'train' else []
    return single + [choice for parity, choice in products(3) if parity == (split == 'validation')]


def tastes_at(user: SimulatedUser, number: int, conversations: int, request: Request) -> Tastes:
    """Return the tastes that a reply to a user's request should satisfy.

    These are the tastes in the user's record, with two exceptions:

    - If the field `flips` is set, it names a taste that changes sides halfway through the user's history.
    - If the field `depends` is set, it names a taste that applies to one kind of request only. For all other requests,
      the user wants the opposite.

    Args:
      user: the simulated user.
      number: the request's number among the user's requests. Requests with numbers below `conversations` form the
        user's history.
      conversations: the number of conversations in the user's history.
      request: the request that the reply answers.
    """
    tastes = dict(user['tastes'])
    if user['flips'] and number < conversations // 2:
        tastes[user['flips']] = opposite(user['flips'], tastes[user['flips']])
    if user['depends'] and KIND not in request.text:
        tastes[user['depends']] = opposite(user['depends'], tastes[user['depends']])
    return tastes


def oracle_persona(user: SimulatedUser, tastes: Tastes) -> str:
    """Return a persona that states the given tastes exactly, in sentences reserved for the user's split."""
    sentences = []
    for taste, side in tastes.items():
        wordings = TASTES[taste][side].personas[user['split']]
        sentences.append(wordings[int(digest(user['id'], taste)[:8], 16) % len(wordings)])
    return ' '.join(sentences)


def requests_of(config: ConfigDict, user: SimulatedUser) -> list[Request]:
    """Return a user's requests: first those for conversations, then those for prompts.jsonl. No topic occurs twice.

    Raises:
      UserError: the config asks for more requests than the split has topics.
    """
    settings, topics, phrasings = config.simulated, TOPICS[user['split']], PHRASINGS[user['split']]
    rng = np.random.default_rng(int(digest(config.seed, user['id'])[:12], 16))
    count = settings.conversations + settings.prompts
    if count > len(topics):
        raise UserError(
            f'config.simulated.conversations + config.simulated.prompts is {count}, but the split {user["split"]} has '
            f'only {len(topics)} topics: lower one of the two'
        )
    choices = requests(user['split'])  # all phrasings of the first topic, then all of the second, and so on
    picks = rng.permutation(len(topics))[:count] * len(phrasings) + rng.integers(len(phrasings), size=count)
    return [choices[pick] for pick in picks]


def contrary_instruction(user: SimulatedUser, tastes: Tastes, number: int) -> str:
    """Return an instruction that goes against one of a user's tastes, drawn at random.

    Args:
      number: the request's number. It seeds the choice of the taste.
    """
    choices = sorted(opposites(tastes).items())
    taste, side = choices[int(digest('contrary', user['id'], number)[:12], 16) % len(choices)]
    return TASTES[taste][side].instruction


def follow_up(user: SimulatedUser, tastes: Tastes, request: Request, reply: Reply, number: int) -> str:
    """Return a user's follow-up to a reply: a complaint about a taste that the reply does not satisfy, or thanks.

    If the reply is not valid, the user asks again instead. A reply that was cut off is checked as if it had finished.

    Args:
      number: the request's number. It seeds the choice of words.
    """
    rng = np.random.default_rng(int(digest(user['id'], number)[:12], 16))
    if not valid(reply.text, request, True):
        wordings = PUZZLED[user['split']]
    else:
        missed = [TASTES[taste][side] for taste, side in tastes.items() if not TASTES[taste][side].check(reply.text)]
        wordings = THANKS[user['split']]
        if missed:
            wordings = missed[rng.integers(len(missed))].complaints[user['split']]
    return wordings[rng.integers(len(wordings))]
