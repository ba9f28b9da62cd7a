"""Files mutated in encoding, compression, name and nesting: each is read, or refused by one line that names it."""

import gzip
import json
import random

import pytest
from raw_conversations import config, nothing_is_lost, raw_conversation
from test_layouts import EXPORTS, LISTS, ONE_TURN, RATED, SEVERAL_TURNS
from test_raw_files import zstd

from data_pipelines import ingest, shards
from rlhi_jax.io.errors import UserError

FILES = 150  # of each reader
CONVERSATIONS = [
    *(dict(messages=messages) for messages, _ in LISTS.values()),
    *EXPORTS.values(),
    raw_conversation('c', 'How do bees fly?', 'With wings.', 'Shorter!', 'Wings.'),
]
PREFERENCES = [*ONE_TURN.values(), *SEVERAL_TURNS.values(), *(line for lines in RATED.values() for line in lines)]
ODD = (None, True, -1, 10**30, float('nan'), '', ' ', [], {}, [[]], '\ud800', '\x00', 'x' * 5000, [1], {'a': {}})


def nodes(value):
    """All lists and objects in a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from nodes(each)


def mutated_record(record, rng):
    record = json.loads(json.dumps(record))
    if rng.random() < 0.5:
        target = rng.choice([node for node in nodes(record) if node])
        key = rng.choice(list(target)) if isinstance(target, dict) else rng.randrange(len(target))
        change = rng.randrange(4)
        if change == 0:
            del target[key]
        elif change == 1:
            target[key] = rng.choice(ODD)
        elif change == 2:
            target[key] = [target[key]] * rng.randint(1, 3)
        else:
            target[key] = dict(nested=target[key])
    return record


def mutated_file(records, rng):
    """The bytes and the name of a file of mutated records."""
    chosen = [mutated_record(rng.choice(records), rng) for _ in range(rng.randint(1, 6))]
    style = rng.choice(('lines', 'array', 'indented'))
    ascii_only = rng.random() < 0.7
    if style == 'lines':
        text = '\n'.join(json.dumps(record, ensure_ascii=ascii_only) for record in chosen)
    else:
        text = json.dumps(chosen, ensure_ascii=ascii_only, indent=1 if style == 'indented' else None)
    text = text.replace('\n', rng.choice(('\n', '\n', '\r\n', '\n\n', '\r')))
    encoding = rng.choice(('utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32', 'latin-1'))
    data = text.encode(encoding, 'replace')
    if rng.random() < 0.15:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.randbytes(rng.randint(0, 9)) + data[at + rng.randint(0, 9) :]
    compression = rng.choice(('', '', '', 'gzip', 'zstd'))
    data = gzip.compress(data) if compression == 'gzip' else zstd(data) if compression else data
    if compression and rng.random() < 0.2:
        data = data[: rng.randrange(len(data))]
    return data, rng.choice(('x.jsonl', 'x.json', 'x.jsonl.gz', 'x.jsonl.zst', 'x.parquet', 'x.txt', 'x'))


@pytest.mark.parametrize('reader', ['conversations', 'preferences'])
def test_mutated_files_are_read_or_refused_by_name(reader, tmp_path):
    records = CONVERSATIONS if reader == 'conversations' else PREFERENCES
    outcomes = dict(read=0, refused=0)
    for seed in range(FILES):
        data, name = mutated_file(records, random.Random(f'{reader} {seed}'))
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = folder / name
        path.write_bytes(data)
        c = config(folder, raw=str(path), pairs=str(path), shards=str(folder / 'shards'))
        try:
            if reader == 'conversations':
                assert nothing_is_lost(ingest.STAGE.run(c))
            else:
                counts = shards.STAGE.run(c)
                dropped = sum(count for name, count in counts.items() if name.startswith('dropped_'))
                assert counts['lines_read'] == counts['pairs_kept'] + dropped
            outcomes['read'] += 1
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error), str(error)
            outcomes['refused'] += 1
    assert min(outcomes.values()) > FILES / 5, outcomes
