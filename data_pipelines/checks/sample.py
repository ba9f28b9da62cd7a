"""Reads a sample of the raw records, from the beginnings of several files, in bounded time and memory."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from data_pipelines.raw.files import form_of
from data_pipelines.raw.formats import RawConversation
from data_pipelines.raw.messages import message_list, value, values
from data_pipelines.raw.scan import Rules, chunks, raw_records, usable_conversation
from rlhi_jax.data.tree import BadRecord

MAX_RECORDS, MAX_FILES = 2000, 16
_IN_MESSAGES = ('role', 'content', 'said_at')
_UNREAD = ('no_messages', 'message_without_role', 'message_without_text')  # drop reasons that a wrong path can cause
_NAMES = 12  # the most field names that an outline lists per object


class Sample(NamedTuple):
    """A sample of the raw records.

    Attributes:
      conversations: the usable conversations.
      counts: the number of records read, and the number dropped for each reason.
      found: how often each path was used, keyed by field. In each record, the first path that leads to a value is used.
      not_messages: up to three values that are at the path of the messages but are not lists of messages.
      total: the number of records in all files; an estimate unless `whole`.
      whole: whether the sample contains all records.
      files: the files that were read.
      outline: the field names of a record whose messages could not be read; '' if there is no such record.
    """

    conversations: list[RawConversation]
    counts: Counter
    found: dict[str, Counter]
    not_messages: list[Any]
    total: int
    whole: bool
    files: Sequence[Path]
    outline: str = ''

    @property
    def follow_ups(self) -> int:
        """The number of user turns that follow a reply, over all usable conversations."""
        return sum((len(each['messages']) - 1) // 2 for each in self.conversations)


def read_sample(files: Sequence[Path], rules: Rules) -> Sample:
    """Return a sample of at most `MAX_RECORDS` records, from at most `MAX_FILES` files spread evenly over `files`.

    The sample contains nothing from users who have opted out.

    Raises:
      UserError: a file cannot be read.
    """
    rules = rules.without_missing_salt()
    step = max(1, len(files) // MAX_FILES)
    chosen = files[::step][:MAX_FILES]
    each = MAX_RECORDS // len(chosen)
    conversations: list[RawConversation] = []
    counts: Counter = Counter()
    found: dict[str, Counter] = defaultdict(Counter)
    not_messages: list[Any] = []
    outline = ''
    sizes, whole = [], len(chosen) == len(files)
    for path in chosen:
        records = (record for chunk in chunks(path, '') for record in raw_records(chunk, rules.fields, counts))
        for record in islice(records, each):
            counts['records_read'] += 1
            sizes.append(len(json.dumps(record, default=str)))
            _note_paths(record, rules.fields, found)
            try:
                conversation = usable_conversation(record, rules, counts)
                if conversation['user_id'] in rules.opted_out:
                    raise BadRecord('opted_out')
                conversations.append(conversation)
            except BadRecord as bad:
                counts[f'dropped_{bad.reason}'] += 1
                if bad.reason in _UNREAD:
                    outline = outline or outline_of(record)
                at_path = value(record, rules.fields['messages']) if isinstance(record, dict) else record
                if bad.reason == 'no_messages' and at_path is not None and len(not_messages) < 3:
                    not_messages.append(at_path)
        whole &= next(records, None) is None
    total = counts['records_read'] if whole else max(_records_in(files, sizes), counts['records_read'])
    return Sample(conversations, counts, dict(found), not_messages, total, whole, chosen, outline)


def outline_of(record: Any) -> str:
    """Return the names of a record's fields, and of the fields nested one level below them, without any values.

    >>> outline_of(dict(thread='t', account=dict(ref='a'), turns=[dict(who='customer', body='Hi.')]))
    'thread, account{ref}, turns[who, body]'
    """
    if not isinstance(record, dict):
        return type(record).__name__

    def inside(field: Any) -> str:
        if isinstance(field, dict):
            return f'{{{", ".join(list(field)[:_NAMES])}}}'
        first = field[0] if isinstance(field, list) and field else None
        return f'[{", ".join(list(first)[:_NAMES])}]' if isinstance(first, dict) else ''

    return ', '.join(f'{name}{inside(field)}' for name, field in list(record.items())[:_NAMES])


def _note_paths(record: Any, fields: dict[str, str], found: dict[str, Counter]) -> None:
    """For each field, find the first path that leads to a value in the record, and add 1 to its count in `found`."""
    if not isinstance(record, dict):
        return
    messages = message_list(value(record, fields['messages'])) or []
    for name, paths in fields.items():
        if name.endswith('_role'):
            continue
        places = messages if name in _IN_MESSAGES else [record]
        for path in paths.split('|'):
            if any(next(values(place, path), None) is not None for place in places):
                found[name][path] += 1
                break


def _records_in(files: Sequence[Path], sizes: Sequence[int]) -> int:
    """Estimate the number of records in files from `sizes`, the sampled records' lengths in characters of JSON."""
    mean, total = max(sum(sizes) / max(len(sizes), 1), 1), 0.0
    for path in files:
        form = form_of(path, 'config.data.raw')
        if form.layout == 'parquet':
            total += pyarrow.parquet.read_metadata(path).num_rows
        else:
            total += path.stat().st_size * (4 if form.compression else 1) / mean  # chats compress to about a quarter
    return round(total)
