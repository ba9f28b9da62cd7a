"""Raw conversations as WildChat publishes them, and ingest's output for them."""

import json

import tiny

from data_pipelines.sources.simulated import wildchat_record
from rlhi_jax.config import base_config

SHARED_DATA = tiny.ROOT.parent / 'shared' / 'data'
TURNS = [('user', 'What is tea?'), ('assistant', 'A drink.'), ('user', 'Shorter!'), ('assistant', 'Drink.')]
WILDCHAT = SHARED_DATA / 'wildchat' / 'conversations.jsonl'


def config(tmp_path, **data):
    """The defaults, with paths in a folder; `data` are more keys of `config.data`."""
    c = base_config()
    c.data.update(dict(raw=str(tmp_path / 'raw.jsonl'), conversations=str(tmp_path / 'conversations')) | data)
    return c


def raw_conversation(name: str, *texts: str, user: str = 'u', **fields) -> dict:
    """A conversation in WildChat's format, whose texts alternate between user and assistant."""
    turns = [(('user', 'assistant')[i % 2], text) for i, text in enumerate(texts)]
    return wildchat_record(dict(id=user), turns, 0, 'model') | dict(conversation_hash=name) | fields


def write_lines(path, records) -> None:
    path.write_text('\n'.join(map(json.dumps, records)), encoding='utf-8')


def output(c) -> bytes:
    return (tiny.Path(c.data.conversations) / 'records.jsonl').read_bytes()


def records(c) -> list[dict]:
    return [json.loads(line) for line in output(c).splitlines()]


def nothing_is_lost(counts) -> bool:
    """Whether every record read was either kept or dropped."""
    return counts['records_read'] == sum(n for name, n in counts.items() if name.startswith(('dropped_', 'kept_')))
