"""Conversations with what other stages' folders hold of them: one at a time, or all of one author together."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.stage import RECORDS, Record, input_folder, stream_records
from data_pipelines.core.turns import conversation_of
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.progress import Progress


def side_by_side(config: ConfigDict, *others: Path) -> Iterator[tuple[Record, list[list[Record]]]]:
    """Each conversation with those records of other files that are of it; all are read once, together.

    The others' ids are CONVERSATION/PLACE, and their conversations in the order of `config.data.conversations`.

    Raises:
      UserError: a file has a record of another conversation, or in another order.
    """
    talks = input_folder(config, 'conversations') / RECORDS
    groups = [itertools.groupby(stream_records(path), lambda record: conversation_of(record['id'])) for path in others]
    heads = [next(group, None) for group in groups]
    size = talks.stat().st_size >> 20
    with open(talks, 'rb') as file, Progress('conversations', size, unit='MiB') as progress:
        for text in file:
            talk, own = json.loads(text), []
            for number, head in enumerate(heads):
                own.append([])
                if head and head[0] == talk['id']:
                    own[-1] = list(head[1])
                    heads[number] = next(groups[number], None)
            yield talk, own
            if (done := file.tell() >> 20) < size:
                progress.update(done)
    for path, head in zip(others, heads, strict=True):
        if head:
            raise UserError(
                f'{path}: its records from conversation {head[0]!r} on do not follow config.data.conversations '
                f'({talks}): run its stage again'
            )


class Author(NamedTuple):
    """Who said what is told of them: a user, or with '' for an id the unknown author of one conversation.

    Attributes:
      talks: their conversations by id, in order of time.
      of: records of those conversations, a list for each file that was read beside them.
    """

    user_id: str
    talks: dict[str, Record]
    of: list[list[Record]]

    def before(self, claim: Record) -> str:
        """What had been said in a conversation of theirs before one of its turns, which a claim or remark is of."""
        said = self.talks[claim['conversation']]['messages'][: claim['place']]
        return '\n'.join(message['content'] for message in said)


def authors(config: ConfigDict, *others: Path) -> Iterator[Author]:
    """Everybody who speaks in the conversations, with the records of other files that are of them, one after another.

    Raises:
      UserError: conversations are not in the order of users, which ingest puts them in.
    """
    last = (False, '')
    told = side_by_side(config, *others)
    for (nameless, user, _), group in itertools.groupby(told, lambda pair: _author(pair[0])):
        if (nameless, user) < last:
            raise UserError(
                f'config.data.conversations: those of user {user!r} do not stand together, in the order of users: run '
                'ingest again'
            )
        last = (nameless, user)
        talks, of = {}, [[] for _ in others]
        for talk, records in group:
            talks[talk['id']] = talk
            for own, more in zip(of, records, strict=True):
                own += more
        yield Author(user, talks, of)


def _author(talk: Record) -> tuple[bool, str, str]:
    """Whom a conversation is of, in the order of authors: users, then the unknown."""
    user = talk['user_id']
    return not user, user, '' if user else talk['id']
