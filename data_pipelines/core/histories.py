"""Read conversations, one by one or grouped by author, together with other stages' records about them."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_folder
from data_pipelines.core.record_files import RECORDS, stream_records
from data_pipelines.core.records import Conversation, FollowUp, Record, Remark
from data_pipelines.core.turns import conversation_of, request_index, turn_id
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.progress import Progress


def side_by_side(config: ConfigDict, *others: Path) -> Iterator[tuple[Conversation, list[list[Record]]]]:
    """Yield each conversation in `config.data.conversations`, with the records about it from each file in `others`.

    Every file is read once. Records in the files in `others` must have turn ids as their ids, and must be in the same
    order as the conversations.

    Raises:
      UserError: a file has records about an unknown conversation, or its records are in a different order.
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
                f'{path}: the records from conversation {head[0]!r} onwards are not in the order of '
                f'config.data.conversations ({conversations}): rerun the stage that wrote the file'
            )


def follow_ups_with_personas(config: ConfigDict) -> Iterator[tuple[Conversation, FollowUp, str | None]]:
    """Yield each follow-up with its conversation and its author's persona at the time of the request.

    The persona is None if no pair may be made from the request, because the request's persona may already draw on the
    follow-up.
    """
    folders = [input_folder(config, key) / RECORDS for key in ('follow_ups', 'personas')]
    for conversation, (follow_ups, turn_personas) in side_by_side(config, *folders):
        personas = {turn['id']: turn['persona'] for turn in turn_personas}
        for turn in follow_ups:
            yield conversation, turn, personas.get(turn_id(conversation['id'], request_index(turn['turn_index'])))


def author_id(user_id: str, conversation: str) -> str:
    """Return the id of a conversation's author: the user id or, if the user is unknown, the conversation id."""
    return user_id or conversation


class Author(NamedTuple):
    """A user, or the unknown author of one conversation.

    Attributes:
      user_id: '' if the author is unknown.
      conversations: the author's conversations, keyed by id, oldest first.
      records: the records about those conversations, one list for each file that was passed to `authors`.
    """

    user_id: str
    conversations: dict[str, Conversation]
    records: list[list[Record]]

    def text_before(self, remark: Remark) -> str:
        """Return the text of all turns before the turn that a remark or claim comes from."""
        messages = self.conversations[remark['conversation']]['messages'][: remark['turn_index']]
        return '\n'.join(message['content'] for message in messages)


def authors(config: ConfigDict, *others: Path) -> Iterator[Author]:
    """Yield every author of the conversations, with the records about their conversations from each file in `others`.

    Raises:
      UserError: the conversations are not sorted by user, which is the order in which `ingest` writes them.
    """
    last = (False, '')
    pairs = side_by_side(config, *others)
    for (nameless, user, _), group in itertools.groupby(pairs, lambda pair: _author_key(pair[0])):
        if (nameless, user) < last:
            raise UserError(
                f"config.data.conversations is not sorted by user (see user {user!r}): rerun the 'ingest' stage"
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
    """Return a key that identifies a conversation's author and sorts known users before unknown ones."""
    user = conversation['user_id']
    return not user, user, '' if user else conversation['id']
