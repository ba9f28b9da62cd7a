"""Simulated users: latent tastes, everyday requests, complaints about what a reply misses. The embedded default source.

    python -m data_pipelines.sources.simulated --config=configs/NAME.py

Writes to `config.data.raw`:

    train.jsonl, gate.jsonl, test.jsonl   conversations in the WildChat-1M schema, replies by `config.model.path`
    users.jsonl                           who they are and what they like: for the evaluator's eyes only
    prompts.jsonl                         further requests of every user, with the oracle persona

Topics, phrasings, wordings of personas and complaints, and combinations of tastes are disjoint between the splits.
Tastes of `config.simulated.held_out` occur in the test split alone. Some users change their mind in mid-history
(`flips`), some want a taste for one kind of request only and the opposite otherwise (`depends`).
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.generation import generate, model_identity
from data_pipelines.sources.requests import PHRASINGS, SPLITS, TOPICS, Request, requests
from data_pipelines.sources.tastes import TASTES, opposite, satisfaction, valid
from data_pipelines.stage import Record, Stage, Task, write_records
from rlhi_jax.checkpoints import open_model
from rlhi_jax.config import require
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest
from rlhi_jax.generate import Prompt, Reply

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


def conversation_id(user: User, number: int) -> str:
    return digest('conversation', user['id'], number)[:32]


def wildchat_record(user: User, turns: list[tuple[str, str]], number: int, model: str) -> Record:
    """One conversation in the WildChat-1M schema; users come back day by day."""
    moment = (datetime(2026, 1, 1) + timedelta(days=number)).isoformat()
    who = hashed(user['id'])
    header = {'accept-language': 'en-GB', 'user-agent': 'simulated'}
    common = dict(country=None, state=None, hashed_ip=who, header=header, timestamp=moment)
    conversation = [
        dict(common, role=role, content=content, language='English', toxic=False, redacted=False, turn_identifier=place)
        for place, (role, content) in enumerate(turns)
    ]
    return dict(
        conversation_hash=conversation_id(user, number),
        model=model,
        timestamp=moment,
        conversation=conversation,
        turn=sum(role == 'user' for role, _ in turns),
        language='English',
        openai_moderation=[],
        detoxify_moderation=[],
        toxic=False,
        redacted=False,
        state=None,
        country=None,
        hashed_ip=who,
        header=header,
    )


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    return dict(
        population=population(config),
        simulated=config.simulated.to_dict(),
        sampler=config.sampler.to_dict(),
        seed=config.seed,
        model=model_identity(config, config.model.path),
    )


def _work(task: Task) -> dict[str, int]:
    config, folder = task.config, task.folder
    s, users = config.simulated, population(config)
    counts: Counter = Counter(users=len(users))
    turns: dict[str, list[tuple[str, str]]] = {}
    talks = {}
    for user in users:
        for number, request in enumerate(asked(config, user)[: s.conversations]):
            name = f'{user["id"]}/{number}'
            talks[name] = (user, number, request)
            turns[name] = [('user', request.text)]
    prompts = [Prompt(name, tuple(said)) for name, said in turns.items()]
    replies = generate(task, config.model.path, prompts) if prompts else {}
    for name, (user, number, request) in talks.items():
        if not replies[name]:
            raise UserError(
                f'config.sampler.prompt_tokens is {config.sampler.prompt_tokens}: too few for {request.text!r}'
            )
        (reply,) = replies[name]
        counts['replies_cut_off'] += not reply.finished
        tastes = tastes_at(user, number, s.conversations, request)
        counts['replies_satisfying'] += satisfaction(reply.text, request, reply.finished, tastes) == 1
        turns[name] += [('assistant', reply.text), ('user', complaint(user, tastes, request, reply, number))]
    model = open_model(config.model.path).path.name
    for split in SPLITS:
        chosen = [(name, talk) for name, talk in talks.items() if talk[0]['split'] == split]
        write_records(folder / f'{split}.jsonl', (wildchat_record(u, turns[n], k, model) for n, (u, k, _) in chosen))
        counts[f'conversations_{split}'] = len(chosen)
    write_records(folder / 'users.jsonl', (user | dict(user_id=hashed(user['id'])) for user in users))
    prompts = [
        dict(
            id=f'{user["id"]}/{number}',
            split=user['split'],
            user_id=hashed(user['id']),
            persona=oracle_persona(user, tastes_at(user, number, s.conversations, request)),
            messages=[dict(role='user', content=request.text)],
        )
        for user in users
        for number, request in enumerate(asked(config, user))
        if number >= s.conversations
    ]
    counts['prompts'] = len(prompts)
    write_records(folder / 'prompts.jsonl', prompts)
    return task.write_manifest(counts)


STAGE = Stage('sources.simulated', 1, _work, 'data.raw', _identity)

if __name__ == '__main__':
    STAGE.main()
