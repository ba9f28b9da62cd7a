"""Conversations beside the records that other stages wrote about them: one by one, or all of one author together."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_folder
from data_pipelines.core.record_files import RECORDS, stream_records
from data_pipelines.core.records import Conversation, Record, Remark
from data_pipelines.core.turns import conversation_of
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.progress import Progress


def side_by_side(config: ConfigDict, *others: Path) -> Iterator[tuple[Conversation, list[list[Record]]]]:
    """Each conversation with its records from each of the other files; every file is read once.

    The other files' ids are turn ids, and their conversations come in the order of `config.data.conversations`.

    Raises:
      UserError: a file has records of an unknown conversation, or in another order.
    """
    conversations = input_folder(config, 'conversations') / RECORDS
    groups = [itertools.groupby(stream_records(path), lambda record: conversation_of(record['id'])) for path in others]
    heads = [next(group, None) for group in groups]
    size = conversations.stat().st_size >> 20
    with open(conversations, 'rb') as file, Progress('conversations', size, unit='MiB') as progress:
        for line in file:
            conversation: Conversation = json.loads(line)
            records: list[list[Record]] = []
            for number, head in enumerate(heads):
                records.append([])
                if head and head[0] == conversation['id']:
                    records[-1] = list(head[1])
                    heads[number] = next(groups[number], None)
            yield conversation, records
            if (done := file.tell() >> 20) < size:
                progress.update(done)
    for path, head in zip(others, heads, strict=True):
        if head:
            raise UserError(
                f'{path}: from conversation {head[0]!r} on, its records do not follow config.data.conversations '
                f'({conversations}): run its stage again'
            )


class Author(NamedTuple):
    """A user, or the unknown author of one conversation.

    Attributes:
      user_id: '' if the author is unknown.
      conversations: theirs by id, in order of time.
      records: the records about those conversations, one list for each file that was read beside them.
    """

    user_id: str
    conversations: dict[str, Conversation]
    records: list[list[Record]]

    def text_before(self, remark: Remark) -> str:
        """The text of the conversation before the turn of a remark or claim."""
        messages = self.conversations[remark['conversation']]['messages'][: remark['turn_index']]
        return '\n'.join(message['content'] for message in messages)


def authors(config: ConfigDict, *others: Path) -> Iterator[Author]:
    """Every author of the conversations, with the records of the other files about them.

    Raises:
      UserError: the conversations are not in the order of users, in which ingest writes them.
    """
    last = (False, '')
    pairs = side_by_side(config, *others)
    for (nameless, user, _), group in itertools.groupby(pairs, lambda pair: _author_key(pair[0])):
        if (nameless, user) < last:
            raise UserError(
                f'config.data.conversations: the conversations of user {user!r} are not next to each other, in the '
                'order of users: run ingest again'
            )
        last = (nameless, user)
        conversations: dict[str, Conversation] = {}
        records: list[list[Record]] = [[] for _ in others]
        for conversation, own_records in group:
            conversations[conversation['id']] = conversation
            for collected, more in zip(records, own_records, strict=True):
                collected += more
        yield Author(user, conversations, records)


def _author_key(conversation: Conversation) -> tuple[bool, str, str]:
    """Identifies a conversation's author; sorts known users before unknown ones."""
    user = conversation['user_id']
    return not user, user, '' if user else conversation['id']
