"""Raw records in any published layout → conversations.

A path names keys from the record inwards, joined by dots; alternative paths are joined by `|` and tried in order. The
defaults of `config.ingest.fields` read WildChat-1M, LMSYS-Chat-1M, ShareGPT, RealHumanEval and OpenAI-style messages as
published. Data with other field names needs other paths, not other code.
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
_TURN_FIELDS = ('role', 'content', 'said_at')  # the other fields are the record's
_MAX_SECONDS = 1e11  # the year 5138: larger numbers are milliseconds or finer
_NUMBER = re.compile(r'\d{10}(?:\d{3}){0,3}(?:\.\d+)?')  # a time as digits: seconds, milli-, micro- or nanoseconds
_UNSET = ('false', 'no', 'none', 'null', 'nan', '0', '0.0')


class RawConversation(TypedDict):
    """One raw record, parsed; `raw.scan` filters it and writes it to a part."""

    id: str  # as in the data; without one, a digest of user and text
    user_id: str  # as in the data, or a key if users are salted; '' if the user is unknown
    began: str  # earliest time stamp in ISO 8601, UTC; '' if neither the first turn nor its reply has one
    ended: str  # latest time stamp; '' if the record, the last user turn and its reply have none
    language: str  # as the data names it; '' if it does not
    toxic: bool  # whether any of the record's flags says so
    redacted: bool  # the same
    system: str  # system messages before the first turn, a blank line between them; '' for none
    messages: list[Message]  # user and assistant in turn, at least one of each


def values(record: Any, paths: str) -> Iterator[Any]:
    """Every value that the paths lead to; a list on the way stands for each of its items.

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
    """The first of `values` other than '' and []; without one, the first of all, or None."""
    first = None
    for each in values(record, paths):
        if each not in ('', []):
            return each
        first = each if first is None else first
    return first


@cache
def _keys(paths: str) -> tuple[tuple[str, ...], ...]:
    """The keys of each path; cached, because every record asks."""
    return tuple(tuple(path.split('.')) for path in paths.split('|'))


@cache
def _role_names(*theirs: str) -> dict[str, str]:
    """A mapping from the data's names of roles to ours."""
    return {name: ours for ours, names in zip(ROLES, theirs, strict=True) for name in names.split('|')}


def paths_read(fields: Mapping[str, str]) -> list[list[str]]:
    """The keys, from the record inwards, of every value that `parse_conversation` looks at."""
    turn_keys = [keys for name in _TURN_FIELDS for keys in _keys(fields[name])]
    in_turns = [[*turn, *keys] for turn in _keys(fields['messages']) for keys in turn_keys]
    others = [name for name in fields if name not in ('messages', *_TURN_FIELDS) and not name.endswith('_role')]
    return in_turns + [list(keys) for name in others for keys in _keys(fields[name])]


def parse_conversation(record: Any, fields: Mapping[str, str], salt: bytes = b'') -> RawConversation:
    """Parse one raw record.

    WildChat stamps a conversation with the time of its last turn, and of the turns it stamps only replies. So `began`
    is set only if the first turn or its reply has a time stamp: a later one would give the first turn knowledge of the
    future. In the same way `ended` needs a stamp of the record, the last user turn or its reply.

    Args:
      record: any value that JSON or parquet can hold.
      fields: paths by field, `config.ingest.fields`.
      salt: turns users into keys (`data_pipelines/privacy/user_keys.py`); b'' leaves their ids as they are.

    Raises:
      BadRecord: the record cannot be used; its reason is the name to count it by.
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
    """The turns as the record holds them, at least one."""
    if isinstance(record, list):
        raise BadRecord('array_of_records')
    raw_turns = value(record, fields['messages']) if isinstance(record, dict) else None
    if not isinstance(raw_turns, list) or not raw_turns:
        raise BadRecord('no_messages')
    return raw_turns


def _turns(record: dict[str, Any], raw_turns: list[Any], fields: Mapping[str, str]) -> list[Turn]:
    """(role, text) of each turn, and of the last reply where it stands beside the messages; '' for an unknown role."""
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
    """The texts of system messages at the beginning, and the other turns."""
    first = next((index for index, (role, _) in enumerate(turns) if role != 'system'), len(turns))
    return [text for _, text in turns[:first]], list(turns[first:])


def _check(turns: Sequence[Turn]) -> None:
    """Raise BadRecord unless user and assistant alternate, none of them is silent, and there is a reply."""
    if any(role != ROLES[index % 2] for index, (role, _) in enumerate(turns)):
        raise BadRecord('roles_do_not_alternate')
    if not all(text for _, text in turns):
        raise BadRecord('empty_message')
    if len(turns) < 2:
        raise BadRecord('no_reply')


def _span(times: Sequence[str], of_record: str, system_messages: int, messages: int) -> tuple[str, str]:
    """When a conversation began and ended, from the times of its raw turns and of the record; '' for unknown."""
    first_exchange = times[: system_messages + 2]
    last_exchange = times[system_messages + (messages - 1) // 2 * 2 :]
    began = min(filter(None, times)) if any(first_exchange) else ''
    return began, max([*times, of_record]) if of_record or any(last_exchange) else ''


def turn_text(turn: dict[str, Any], paths: str) -> str:
    """A turn's text; the parts of a message in OpenAI's style are joined by newlines.

    Raises:
      BadRecord: the turn has no text, or has a part without text, such as an image.
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
    """Whether a flag is set; it may be text or a number.

    >>> [is_set(flag) for flag in (True, 'True', 1, 'False', '0', float('nan'), '')]
    [True, True, True, False, False, False, False]
    """
    return bool(flag) and str(flag).strip().lower() not in _UNSET


def clean(text: str) -> str:
    """Text without outer white space and without lone surrogates, which UTF-8 cannot encode."""
    return text.encode('utf-8', 'replace').decode().strip()


def as_text(name: Any) -> str:
    """A name or a number as text, a whole number without a decimal point; '' for anything else.

    >>> as_text(' u7 '), as_text(7.0), as_text(7.5), as_text(True)
    ('u7', '7', '', '')
    """
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    return clean(str(name)) if isinstance(name, str | int) and not isinstance(name, bool) else ''


def iso_time(stamp: Any) -> str:
    """A time stamp in ISO 8601 and UTC, so that text order is time order; '' if it is missing or cannot be read.

    Args:
      stamp: a datetime, text in ISO form, or a number or digits since 1970, whose size tells seconds, milli-, micro-
        and nanoseconds apart.

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
