"""Parses raw records in various published layouts into conversations.

`config.ingest.fields` contains the paths to each field of a conversation. A path is a series of keys, starting at the
record and joined by dots. Alternative paths are joined by `|` and tried in order. The default paths can read
WildChat-1M, LMSYS-Chat-1M, ShareGPT, RealHumanEval and OpenAI-style messages as published. Data with other field names
needs different paths, but no new code.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypedDict

from data_pipelines.core.records import Message
from data_pipelines.core.turns import Turn, to_messages
from data_pipelines.privacy.user_keys import user_key
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.files import digest

ROLES = ('user', 'assistant', 'system')
_TURN_FIELDS = ('role', 'content', 'said_at')  # the other fields belong to the record
_MAX_SECONDS = 1e11  # the year 5138; larger numbers are in milliseconds or finer units
_NUMBER = re.compile(r'\d{10}(?:\d{3}){0,3}(?:\.\d+)?')  # a time in seconds, milli-, micro- or nanoseconds
_UNSET = ('false', 'no', 'none', 'null', 'nan', '0', '0.0')


class RawConversation(TypedDict):
    """A parsed raw record; `raw.scan` filters it and writes it to a part."""

    id: str  # as in the data; if the data has no id, a digest of user and text
    user_id: str  # as in the data, or a key if a salt is set; '' if the user is unknown
    began: str  # earliest time stamp in ISO 8601, UTC; '' if the first turn and its reply have no time stamp
    ended: str  # latest time stamp; '' if the record, the last user turn and its reply have no time stamp
    language: str  # as named in the data; '' if the data does not say
    toxic: bool  # whether any flag marks the record as toxic
    redacted: bool  # whether any flag marks the record as redacted
    system: str  # system messages before the first turn, joined by blank lines; '' if there are no such messages
    messages: list[Message]  # alternately from user and assistant, at least one from each


def values(record: Any, paths: str) -> Iterator[Any]:
    """Yield every value that the paths lead to, except None. A path through a list follows every item of the list.

    >>> list(values(dict(a=dict(b=1), c=[dict(d=2), dict(d=None)]), 'x|a.b|c.d'))
    [1, 2]
    """
    for keys in _keys(paths):
        reached = [record]
        for key in keys:
            items = [item for each in reached for item in (each if isinstance(each, list) else [each])]
            reached = [item[key] for item in items if isinstance(item, dict) and item.get(key) is not None]
        yield from reached


def value(record: Any, paths: str) -> Any:
    """Return the first of `values` that is not '' or [].

    If all values are '' or [], return the first. If there are no values, return None.
    """
    first = None
    for each in values(record, paths):
        if each not in ('', []):
            return each
        first = each if first is None else first
    return first


@cache
def _keys(paths: str) -> tuple[tuple[str, ...], ...]:
    """Split paths into keys; cached, because every record needs the result."""
    return tuple(tuple(path.split('.')) for path in paths.split('|'))


@cache
def _role_names(*theirs: str) -> dict[str, str]:
    """Map the role names in the data to our role names."""
    return {name: ours for ours, names in zip(ROLES, theirs, strict=True) for name in names.split('|')}


def paths_read(fields: Mapping[str, str]) -> list[list[str]]:
    """Return the path to every value that `parse_conversation` reads, as a list of keys starting at the record."""
    turn_keys = [keys for name in _TURN_FIELDS for keys in _keys(fields[name])]
    in_turns = [[*turn, *keys] for turn in _keys(fields['messages']) for keys in turn_keys]
    others = [name for name in fields if name not in ('messages', *_TURN_FIELDS) and not name.endswith('_role')]
    return in_turns + [list(keys) for name in others for keys in _keys(fields[name])]


def parse_conversation(record: Any, fields: Mapping[str, str], salt: bytes = b'') -> RawConversation:
    """Parse one raw record.

    Some turns have no time stamp. In WildChat, for example, the record has the time of the last turn, and replies have
    times, but user turns do not. `began` is set only if the first turn or its reply has a time stamp, because a later
    time would give the first turn knowledge of the future. `ended` is set only if the record, the last user turn or its
    reply has a time stamp.

    Args:
      record: any value that JSON or parquet can represent.
      fields: paths keyed by field, as in `config.ingest.fields`.
      salt: the salt for user keys (`data_pipelines/privacy/user_keys.py`); b'' leaves user ids unchanged.

    Raises:
      BadRecord: the record cannot be used. The exception contains the reason under which to count the record.
    """
    raw_turns = _raw_turns(record, fields)
    system, turns = _split_off_system(_turns(record, raw_turns, fields))
    _check(turns)
    messages = to_messages(turns)
    user = user_key(as_text(value(record, fields['user'])), value(record, fields['header']), salt)
    times = [iso_time(value(turn, fields['said_at'])) for turn in raw_turns]
    began, ended = _span(times, iso_time(value(record, fields['ended'])), len(system), len(messages))
    return RawConversation(
        id=as_text(value(record, fields['id'])) or digest(user, messages, *filter(None, system))[:32],
        user_id=user,
        began=began,
        ended=ended,
        language=as_text(value(record, fields['language'])),
        toxic=any(map(is_set, values(record, fields['toxic']))),
        redacted=any(map(is_set, values(record, fields['redacted']))),
        system='\n\n'.join(filter(None, system)),
        messages=messages,
    )


def _raw_turns(record: Any, fields: Mapping[str, str]) -> list[Any]:
    """Return the record's turns unchanged; raise BadRecord if there are no turns."""
    if isinstance(record, list):
        raise BadRecord('array_of_records')
    raw_turns = value(record, fields['messages']) if isinstance(record, dict) else None
    if not isinstance(raw_turns, list) or not raw_turns:
        raise BadRecord('no_messages')
    return raw_turns


def _turns(record: dict[str, Any], raw_turns: list[Any], fields: Mapping[str, str]) -> list[Turn]:
    """Return the role and text of each turn. An unknown role becomes ''.

    If the record has its last reply outside the messages, that reply is the last turn.
    """
    roles = _role_names(*(fields[f'{ours}_role'] for ours in ROLES))
    turns = []
    for turn in raw_turns:
        if not isinstance(turn, dict):
            raise BadRecord('message_without_text')
        role, text = value(turn, fields['role']), turn_text(turn, fields['content'])
        turns.append((roles.get(role, '') if isinstance(role, str) else '', text))
    if (reply := next((each for each in values(record, fields['reply']) if isinstance(each, str)), None)) is not None:
        turns.append(('assistant', clean(reply)))
    return turns


def _split_off_system(turns: Sequence[Turn]) -> tuple[list[str], list[Turn]]:
    """Return the texts of the system messages at the beginning, and the remaining turns."""
    first = next((index for index, (role, _) in enumerate(turns) if role != 'system'), len(turns))
    return [text for _, text in turns[:first]], list(turns[first:])


def _check(turns: Sequence[Turn]) -> None:
    """Raise BadRecord unless user and assistant alternate, no turn is empty, and there is a reply."""
    if any(role != ROLES[index % 2] for index, (role, _) in enumerate(turns)):
        raise BadRecord('roles_do_not_alternate')
    if not all(text for _, text in turns):
        raise BadRecord('empty_message')
    if len(turns) < 2:
        raise BadRecord('no_reply')


def _span(times: Sequence[str], of_record: str, system_messages: int, messages: int) -> tuple[str, str]:
    """Return when a conversation began and ended, given the times of its raw turns and the record; '' if unknown."""
    first_exchange = times[: system_messages + 2]
    last_exchange = times[system_messages + (messages - 1) // 2 * 2 :]
    began = min(filter(None, times)) if any(first_exchange) else ''
    return began, max([*times, of_record]) if of_record or any(last_exchange) else ''


def turn_text(turn: dict[str, Any], paths: str) -> str:
    """Return a turn's text; the parts of an OpenAI-style message are joined by newlines.

    Raises:
      BadRecord: the turn has no text, or one of its parts (such as an image) has no text.
    """
    text = None
    for path in paths.split('|'):
        texts, fault = list(values(turn, path)), 'message_without_text'
        if texts and isinstance(texts[0], list):
            texts = [part.get('text') if isinstance(part, dict) else part for part in texts[0]]
            fault = 'part_without_text'
        try:
            text = '\n'.join(texts) if texts else text
        except TypeError:
            raise BadRecord(fault) from None
        if text:
            return clean(text)
    if text is None:
        raise BadRecord('message_without_text')
    return text


def is_set(flag: Any) -> bool:
    """Whether a flag is set; the flag may be a boolean, text or a number.

    >>> [is_set(flag) for flag in (True, 'True', 1, 'False', '0', float('nan'), '')]
    [True, True, True, False, False, False, False]
    """
    return bool(flag) and str(flag).strip().lower() not in _UNSET


def clean(text: str) -> str:
    """Strip white space from both ends of a text, and replace lone surrogates, which UTF-8 cannot encode."""
    return text.encode('utf-8', 'replace').decode().strip()


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
