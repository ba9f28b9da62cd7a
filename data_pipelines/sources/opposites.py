"""Preferences that only a persona explains: users of opposite tastes, the same replies, flipped labels.

    python -m data_pipelines.sources.opposites --to=DIR [--seed=0]

Made up here for `make demo` and for tests of the whole path; no evidence of anything else. For every request there is a
brief reply and a list. A user wants one of the two, always the same, and says so in the persona: from the texts alone,
chosen and rejected cannot be told apart. Topics of heldout.jsonl do not occur in train.jsonl.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from rlhi_jax.errors import UserError, run
from rlhi_jax.files import new_folder, write_bytes, write_json

REQUESTS = ('How do I {}?', 'Any tips to {}?', 'I want to {}. Where do I start?', 'What should I know to {}?')
TOPICS = {
    'grow tomatoes': ('pick a sunny spot', 'water the roots', 'tie up the stems'),
    'learn to swim': ('find a warm pool', 'practise floating', 'kick from the hips'),
    'bake bread': ('knead until smooth', 'let the dough rise', 'preheat the oven'),
    'sleep better': ('keep the room dark', 'skip late coffee', 'wake at one hour'),
    'train a puppy': ('reward at once', 'keep lessons short', 'stay patient'),
    'save money': ('track spending', 'cook at home', 'set a weekly limit'),
    'paint a room': ('cover the floor', 'sand rough spots', 'start at the top'),
    'run a race': ('build up slowly', 'rest every third day', 'buy good shoes'),
    'plan a trip': ('choose the season', 'book trains early', 'pack light'),
    'write a letter': ('greet them by name', 'say why you write', 'close warmly'),
    'clean a window': ('dust it first', 'use warm water', 'wipe in one direction'),
    'keep bees': ('join a local club', 'find a quiet garden', 'check the hive weekly'),
    'learn chess': ('know how pieces move', 'guard the king', 'solve small puzzles'),
    'brew coffee': ('grind it fresh', 'weigh the beans', 'use soft water'),
    'fix a tyre': ('take off the wheel', 'find the hole', 'patch the tube'),
    'draw a face': ('start with an oval', 'halve it for the eyes', 'shade softly'),
}
HELDOUT_TOPICS = 4
PERSONAS = {
    'brief': ('I like one short sentence, no lists.', 'Keep it brief, I never read lists.'),
    'list': ('I like bulleted lists of steps.', 'Give me steps as a list, with bullets.'),
}


def replies(topic: str) -> dict[str, str]:
    """The two replies to a request about a topic, by the taste that they please."""
    steps = TOPICS[topic]
    return {
        'brief': f'{steps[0].capitalize()}, then {steps[1]}.',
        'list': '\n'.join(f'- {step.capitalize()}' for step in steps),
    }


def preferences(count: int, topics: list[str], users: int, rng: np.random.Generator) -> list[dict]:
    """`count` preferences; users take turns, so both tastes weigh the same."""
    tastes = sorted(PERSONAS)
    records = []
    for i in range(count):
        user = i % users
        taste = tastes[user % 2]
        topic = topics[rng.integers(len(topics))]
        request = REQUESTS[rng.integers(len(REQUESTS))].format(topic)
        both = replies(topic)
        records.append(
            dict(
                user_id=f'user-{user}',
                persona=PERSONAS[taste][user // 2 % len(PERSONAS[taste])],
                prompt=[{'role': 'user', 'content': request}],
                chosen=[{'role': 'assistant', 'content': both.pop(taste)}],
                rejected=[{'role': 'assistant', 'content': next(iter(both.values()))}],
            )
        )
    return records


def _define_flags() -> None:
    flags.DEFINE_string('to', None, 'Folder to write.')
    flags.DEFINE_integer('seed', 0, 'Seed of who asks what.')
    flags.DEFINE_integer('users', 8, 'Users, half of each taste.')
    flags.DEFINE_integer('train', 96, 'Training pairs.')
    flags.DEFINE_integer('heldout', 32, 'Held-out pairs.')
    flags.DEFINE_bool('overwrite', False, 'Replace the folder to write if it exists.')


def main() -> None:
    if not flags.FLAGS.to:
        raise UserError('--to is missing: name the folder to write')
    if flags.FLAGS.users < 2 or flags.FLAGS.users % 2:
        raise UserError(f'--users={flags.FLAGS.users}: it must be even, half of each taste')
    rng = np.random.default_rng(flags.FLAGS.seed)
    topics = sorted(TOPICS)
    rng.shuffle(topics)
    splits = {
        'heldout': (flags.FLAGS.heldout, topics[:HELDOUT_TOPICS]),
        'train': (flags.FLAGS.train, topics[HELDOUT_TOPICS:]),
    }
    with new_folder(Path(flags.FLAGS.to), overwrite=flags.FLAGS.overwrite) as folder:
        for name, (count, own) in splits.items():
            lines = (json.dumps(record) + '\n' for record in preferences(count, own, flags.FLAGS.users, rng))
            write_bytes(folder / f'{name}.jsonl', ''.join(lines).encode())
        counts = {name: count for name, (count, _) in splits.items()}
        write_json(folder / 'manifest.json', dict(stage='sources.opposites', seed=flags.FLAGS.seed, counts=counts))
    print(f'{flags.FLAGS.to}: {json.dumps(counts)}')


if __name__ == '__main__':
    _define_flags()
    run(main)
