"""Pairs out of conversations as logged: each reply is rejected in favour of the next one, a stand-in for a rewrite."""

import json
from pathlib import Path


def pairs_by_conversation(path: Path) -> dict[str, list[dict]]:
    """The preferences of each conversation of a file of JSON lines, in order, by the conversation's id."""
    pairs = {}
    for line in path.read_bytes().split(b'\n'):
        if line.strip():
            record = json.loads(line)
            turns = [dict(role=turn['role'], content=turn['content']) for turn in record['messages']]
            pairs[record['conversation_id']] = [
                dict(id=f'{record["conversation_id"]}/{at}', prompt=turns[: at + 1])
                | dict(chosen=[turns[at + 3]], rejected=[turns[at + 1]])
                for at in range(0, len(turns) - 3, 2)
            ]
    return pairs
