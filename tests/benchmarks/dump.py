"""A made-up dump with WildChat-1M's columns and nesting, and roughly its lengths.

Each record is a function of its number, so any part of the dump can be made alone. A tenth of the openings are
variations of a few, one conversation in a hundred occurs twice, and a few users have many conversations.
"""

from functools import cache

import numpy as np
import pyarrow as pa

from rlhi_jax.io.files import digest

LANGUAGES = ('English', 'English', 'Chinese', 'Russian', 'French')


@cache
def pool() -> str:
    """20 million characters of made-up words; texts are cut from it."""
    rng = np.random.default_rng(0)
    letters = np.array(list('etaoinshrdlucmfwypvbgk'))
    words = np.array([''.join(rng.choice(letters, size)) for size in rng.integers(2, 10, 20_000)])
    return ' '.join(words[np.minimum(rng.zipf(1.3, 3_500_000), 20_000) - 1])


def record(number: int) -> dict:
    rng = np.random.default_rng(number - 1 if number % 100 == 99 else number)
    text, users = pool(), max(number // 5, 1)

    def piece(median: int) -> str:
        size = int(min(rng.lognormal(np.log(median), 1.2), 20_000)) + 5
        start = int(rng.integers(len(text) - size))
        return text[start : start + size].strip()

    turns = min(int(rng.geometric(0.4)), 15)
    texts = [piece(120 if index % 2 == 0 else 900) for index in range(2 * turns)]
    if rng.random() < 0.1:
        start = int(rng.integers(500)) * 1000
        texts[0] = text[start : start + 400] + ' ' + piece(20)
    language, toxic = LANGUAGES[int(rng.integers(len(LANGUAGES)))], bool(rng.random() < 0.1)
    when = pa.scalar(1_680_000_000 + number * 20, pa.timestamp('s')).as_py()
    person = digest(int(users * rng.random() ** 2))
    header = {'accept-language': 'en-US', 'user-agent': 'Mozilla/5.0'}
    common = dict(
        language=language, toxic=toxic, redacted=False, hashed_ip=person, header=header, country='X', state='Y'
    )
    return dict(
        conversation_hash=digest(number)[:32],
        model='gpt-4',
        timestamp=when,
        conversation=[
            dict(common, role=('user', 'assistant')[index % 2], content=content, turn_identifier=index, timestamp=when)
            for index, content in enumerate(texts)
        ],
        turn=turns,
        language=language,
        openai_moderation=[dict(flagged=toxic, categories=dict(hate=False)) for _ in texts],
        detoxify_moderation=[dict(toxicity=0.1) for _ in texts],
        toxic=toxic,
        redacted=False,
        state='Y',
        country='X',
        hashed_ip=person,
        header=header,
    )
