"""Parses raw records in various published layouts into conversations.

`config.ingest.fields` contains the paths to each field of a conversation. A path is a series of keys, starting at the
record and joined by dots. Alternative paths are joined by `|` and tried in order. The default paths can read
WildChat-1M, LMSYS-Chat-1M, ShareGPT, RealHumanEval and OpenAI-style messages as published. Data with other field names
needs different paths, but no new code.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

from data_pipelines.core.records import Message
from data_pipelines.core.turns import to_messages
from data_pipelines.privacy.user_keys import user_key
from data_pipelines.raw.exports import unfolded
from data_pipelines.raw.messages import (
    OTHER_KEYS,
    SpokenTurn,
    clean,
    message_list,
    read_messages,
    split_paths,
    system_text,
    value,
    values,
    without_greeting,
)
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.files import digest

_TURN_FIELDS = ('role', 'content', 'said_at')  # fields of a message; all other fields are fields of the record
_MAX_SECONDS = 1e11  # the year 5138; larger numbers are in milliseconds or finer units
_NUMBER = re.compile(r'\d{10}(?:\d{3}){0,3}(?:\.\d+)?')  # a time in seconds, milli-, micro- or nanoseconds
_UNSET = ('false', 'no', 'none', 'null', 'nan', '0', '0.0')


class RawConversation(TypedDict):
    """A conversation parsed from a raw record, before filtering (`raw.scan`)."""

    id: str  # as in the data; if the data has no id, a digest of user, system texts and messages
    user_id: str  # as in the data, or a key if a salt is set; '' if the user is unknown
    began: str  # earliest time stamp, ISO 8601 in UTC; '' if the first exchange and the record's creation have none
    ended: str  # latest time stamp, ISO 8601 in UTC; '' if neither the last exchange nor the record has one
    language: str  # as named in the data; '' if the data does not say
    toxic: bool  # whether any flag marks the record as toxic
    redacted: bool  # whether any flag marks the record as redacted
    system: str  # system messages before the first turn, joined by blank lines; '' if there are no such messages
    messages: list[Message]  # alternately from user and assistant, at least one from each


def paths_read(fields: Mapping[str, str]) -> list[list[str]]:
    """Return the paths to all values that `parse_conversation` reads, each as a list of keys starting at the record."""
    turn_keys = [keys for name in _TURN_FIELDS for keys in split_paths(fields[name])] + [(key,) for key in OTHER_KEYS]
    in_turns = [[*turn, *keys] for turn in split_paths(fields['messages']) for keys in turn_keys]
    others = [name for name in fields if name not in ('messages', *_TURN_FIELDS) and not name.endswith('_role')]
    others_read = [list(keys) for name in others for keys in split_paths(fields[name])]
    return in_turns + others_read + [['tools'], ['system'], ['parent_id']]


def parse_conversation(
    record: Any, fields: Mapping[str, str], salt: bytes = b'', counts: Counter | None = None
) -> RawConversation:
    """Parse one raw record into a conversation.

    Some turns have no time stamp. In WildChat, for example, the record and the replies have time stamps, but user turns
    do not. The times of the conversation are therefore set by these rules:

    - `began` is set only if the first turn or its reply has a time stamp. If `began` were later, the persona of the
      first turn could draw on conversations that had not ended yet.
    - `ended` is set only if the record, the last user turn or its reply has a time stamp.
    - If the record says when it was created, that time replaces a missing `began` and, if no message has a time stamp,
      a missing `ended`.

    Args:
      record: any value that JSON or parquet can represent.
      fields: paths keyed by field, as in `config.ingest.fields`.
      salt: the salt for user keys (`data_pipelines/privacy/user_keys.py`); b'' leaves user ids unchanged.
      counts: receives the numbers of messages that were left out or joined, keyed by the name of the count.

    Raises:
      BadRecord: the record cannot be used. The exception contains the reason under which to count the record.
    """
    found: Counter = Counter()
    if isinstance(record, dict):
        record = unfolded(record, found)
    raw = _raw_messages(record, fields)
    messages = read_messages(raw, fields, found)
    turns = without_greeting(messages.turns, found)
    _check(turns)
    found['tools_left_out'] += bool(record.get('tools'))
    stated = clean(record['system']) if isinstance(record.get('system'), str) else ''  # beside the messages
    system = tuple(filter(None, (stated, *messages.system)))
    texts = to_messages((turn.role, turn.text) for turn in turns)
    user = user_key(as_text(value(record, fields['user'])), value(record, fields['header']), salt)
    times = [iso_time(value(message, fields['said_at'])) for message in raw]
    began, ended = _span(
        [[times[i] for i in turn.sources] for turn in turns],
        iso_time(value(record, fields['ended'])),
        times,
    )
    if created := iso_time(value(record, fields['began'])):
        found['times_of_whole_conversations'] += not began and not ended
        began, ended = began or created, ended or (created if not any(times) else '')
    if counts is not None:
        counts.update(+found)
    return RawConversation(
        id=as_text(value(record, fields['id'])) or digest(user, texts, *system)[:32],
        user_id=user,
        began=began,
        ended=ended,
        language=as_text(value(record, fields['language'])),
        toxic=any(map(is_set, values(record, fields['toxic']))),
        redacted=any(map(is_set, values(record, fields['redacted']))),
        system=system_text(*system),
        messages=texts,
    )


def _raw_messages(record: Any, fields: Mapping[str, str]) -> list[Any]:
    """Return the record's messages, followed by the reply that is stored outside them, if there is one."""
    if isinstance(record, list):
        raise BadRecord('array_of_records')
    raw = message_list(value(record, fields['messages'])) if isinstance(record, dict) else None
    if not raw:
        raise BadRecord(
            'single_message_of_a_tree' if isinstance(record, dict) and 'parent_id' in record else 'no_messages'
        )
    reply = next((each for each in values(record, fields['reply']) if isinstance(each, str)), None)
    return raw if reply is None else [*raw, _message(fields, 'assistant', reply)]


def _message(fields: Mapping[str, str], role: str, text: str) -> dict[str, Any]:
    """Return a message with the given role and text, under the same keys and role names as in the raw data."""
    message: dict[str, Any] = {}
    for name, item in (('role', fields[f'{role}_role'].split('|')[0]), ('content', text)):
        *outer, last = split_paths(fields[name])[0]
        inner = message
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = item
    return message


def _check(turns: Sequence[SpokenTurn]) -> None:
    """Raise BadRecord unless the first turn is from the user, no turn is empty, and there is a reply."""
    if not turns:
        raise BadRecord('no_user_turn')
    if not all(turn.text for turn in turns):
        raise BadRecord('empty_message')
    if len(turns) < 2:
        raise BadRecord('no_reply')


def _span(times: Sequence[Sequence[str]], of_record: str, every: Sequence[str]) -> tuple[str, str]:
    """Return when a conversation began and ended; '' if unknown.

    Args:
      times: the times of the messages in each turn.
      of_record: the time at which the conversation ended, as stated in the record.
      every: the times of all messages, including those that belong to no turn.
    """
    first_exchange = [time for turn in times[:2] for time in turn]
    last_exchange = [time for turn in times[(len(times) - 1) // 2 * 2 :] for time in turn]
    began = min(filter(None, every)) if any(first_exchange) else ''
    return began, max([*every, of_record]) if of_record or any(last_exchange) else ''


def is_set(flag: Any) -> bool:
    """Whether a flag is set; the flag may be a boolean, text or a number.

    >>> [is_set(flag) for flag in (True, 'True', 1, 'False', '0', float('nan'), '')]
    [True, True, True, False, False, False, False]
    """
    return bool(flag) and str(flag).strip().lower() not in _UNSET


def as_text(name: Any) -> str:
    """Return a name or whole number as text, without a decimal point; '' for anything else.

    >>> as_text(' u7 '), as_text(7.0), as_text(7.5), as_text(True)
    ('u7', '7', '', '')
    """
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    return clean(str(name)) if isinstance(name, str | int) and not isinstance(name, bool) else ''


def iso_time(stamp: Any) -> str:
    """Convert a time stamp to ISO 8601 in UTC, or to '' if it is missing or unreadable.

    Sorting the results as text sorts them by time.

    Args:
      stamp: a datetime, text in ISO format, or the time since 1970 as a number or as digits. The size of the number
        determines its unit: seconds, milliseconds, microseconds or nanoseconds.

    >>> iso_time('2024-05-01 10:00:00+02:00'), iso_time(1714550400), iso_time('yesterday')
    ('2024-05-01T08:00:00+00:00', '2024-05-01T08:00:00+00:00', '')
    """
    if isinstance(stamp, str):
        stamp = stamp.strip().removesuffix(' UTC')
        stamp = float(stamp) if _NUMBER.fullmatch(stamp) else stamp
    try:
        if isinstance(stamp, int | float) and not isinstance(stamp, bool):
            for _ in range(3):
                stamp = stamp / 1000 if abs(stamp) > _MAX_SECONDS else stamp
            time = datetime.fromtimestamp(stamp, UTC)
        else:
            time = stamp if isinstance(stamp, datetime) else datetime.fromisoformat(str(stamp))
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ''
