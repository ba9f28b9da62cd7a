"""Raw records, however their source names things → conversations.

A path names keys from a record inwards, joined by dots; several paths, joined by `|`, are tried in turn. The defaults
of `config.ingest.fields` read WildChat-1M, LMSYS-Chat-1M, ShareGPT, RealHumanEval and OpenAI-style messages as
published; data that names its fields otherwise needs other paths, not other code.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from data_pipelines.privacy.user_keys import user_key
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.files import digest

ROLES = ('user', 'assistant', 'system')
_OF_TURN = ('role', 'content', 'said_at')  # fields of a message, the others are of the record
_SECONDS = 1e11  # of the year 5138: larger numbers are of milliseconds, or less
_NUMBER = re.compile(r'\d{10}(?:\d{3}){0,3}(?:\.\d+)?')  # one of these as text: seconds, milli-, micro- or nanoseconds
_UNSET = ('false', 'no', 'none', 'null', 'nan', '0', '0.0')


def values(record: Any, paths: str) -> Iterator[Any]:
    """What the paths lead to, those that are there; a list on the way stands for its items.

    >>> list(values(dict(a=dict(b=1), c=[dict(d=2), dict(d=None)]), 'x|a.b|c.d'))
    [1, 2]
    """
    for keys in _keys(paths):
        found = [record]
        for key in keys:
            items = [item for each in found for item in (each if isinstance(each, list) else [each])]
            found = [item[key] for item in items if isinstance(item, dict) and item.get(key) is not None]
        yield from found


def value(record: Any, paths: str) -> Any:
    """The first of `values` that is neither '' nor an empty list; if there is none, the first, or None."""
    first = None
    for found in values(record, paths):
        if found not in ('', []):
            return found
        first = found if first is None else first
    return first


@cache
def _keys(paths: str) -> tuple[tuple[str, ...], ...]:
    """The keys of each path, split once and not for every record."""
    return tuple(tuple(path.split('.')) for path in paths.split('|'))


@cache
def _role_names(*theirs: str) -> dict[str, str]:
    return {name: ours for ours, names in zip(ROLES, theirs, strict=True) for name in names.split('|')}


def paths_read(fields: Mapping[str, str]) -> list[list[str]]:
    """Keys, from the record inwards, of everything that `conversation` looks at."""
    keys_of_turn = [keys for name in _OF_TURN for keys in _keys(fields[name])]
    of_turn = [[*turn, *keys] for turn in _keys(fields['messages']) for keys in keys_of_turn]
    others = [name for name in fields if name not in ('messages', *_OF_TURN) and not name.endswith('_role')]
    return of_turn + [list(keys) for name in others for keys in _keys(fields[name])]


def conversation(record: Any, fields: Mapping[str, str], salt: bytes = b'') -> dict[str, Any]:
    """One conversation: id, user_id, when it began and ended, language, messages, and whether it is toxic or redacted.

    WildChat's time stamp of a conversation is that of its last turn; of turns, only replies have one. When it began the
    first turn or its reply says, or nothing: by a later stamp the first turn would know what came after it. So, too,
    the last turn or its reply when it ended, if the conversation does not. System messages at the beginning are kept
    apart, as `system`. With a salt, users are keys (see `data_pipelines/users.py`).

    Raises:
      BadRecord: with the reason to count it by.
    """
    if isinstance(record, list):
        raise BadRecord('array_of_records')
    turns = value(record, fields['messages']) if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise BadRecord('no_messages')
    roles = _role_names(*(fields[f'{ours}_role'] for ours in ROLES))
    said = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRecord('message_without_text')
        role, text = value(turn, fields['role']), text_of_turn(turn, fields['content'])
        said.append((roles.get(role, '') if isinstance(role, str) else '', text))
    if (reply := next((each for each in values(record, fields['reply']) if isinstance(each, str)), None)) is not None:
        said.append(('assistant', clean(reply)))
    system = []
    while said and said[0][0] == 'system':
        system.append(said.pop(0)[1])
    if any(role != ROLES[place % 2] for place, (role, _) in enumerate(said)):
        raise BadRecord('roles_do_not_alternate')
    if not all(text for _, text in said):
        raise BadRecord('empty_message')
    if len(said) < 2:
        raise BadRecord('no_reply')
    messages = [dict(role=role, content=text) for role, text in said]
    user = user_key(text_of(value(record, fields['user'])), value(record, fields['header']), salt)
    times = [moment(value(turn, fields['said_at'])) for turn in turns]
    own = moment(value(record, fields['ended']))
    # Of the first and the last turn, with their replies.
    first, last = times[: len(system) + 2], times[len(system) + (len(messages) - 1) // 2 * 2 :]
    return dict(
        id=text_of(value(record, fields['id'])) or digest(user, messages, *filter(None, system))[:32],
        user_id=user,
        began=min(filter(None, times)) if any(first) else '',
        ended=max([*times, own]) if own or any(last) else '',
        language=text_of(value(record, fields['language'])),
        toxic=any(map(is_set, values(record, fields['toxic']))),
        redacted=any(map(is_set, values(record, fields['redacted']))),
        system='\n\n'.join(filter(None, system)),
        messages=messages,
    )


def text_of_turn(turn: dict[str, Any], paths: str) -> str:
    """What a turn says: text, or a list of parts, as OpenAI's messages may have; each part's text begins a line.

    Raises:
      BadRecord: it says nothing, or has parts without text, such as images.
    """
    said = None
    for path in paths.split('|'):
        texts, fault = list(values(turn, path)), 'message_without_text'
        if texts and isinstance(texts[0], list):
            texts = [part.get('text') if isinstance(part, dict) else part for part in texts[0]]
            fault = 'part_without_text'
        try:
            said = '\n'.join(texts) if texts else said
        except TypeError:
            raise BadRecord(fault) from None
        if said:
            return clean(said)
    if said is None:
        raise BadRecord('message_without_text')
    return said


def is_set(found: Any) -> bool:
    """Whether a flag is set, which may be text or a number.

    >>> [is_set(flag) for flag in (True, 'True', 1, 'False', '0', float('nan'), '')]
    [True, True, True, False, False, False, False]
    """
    return bool(found) and str(found).strip().lower() not in _UNSET


def clean(text: str) -> str:
    """Text without outer white space and without lone surrogates, which no file can hold."""
    return text.encode('utf-8', 'replace').decode().strip()


def text_of(found: Any) -> str:
    """A name as text, a whole number without a point; '' for what is no name."""
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    return clean(str(found)) if isinstance(found, str | int) and not isinstance(found, bool) else ''


def moment(found: Any) -> str:
    """A time stamp in ISO form and UTC, so that text order is time order; '' for none, or none that can be read.

    Args:
      found: text in ISO form, or a number or digits since 1970: seconds, milli-, micro- or nanoseconds by their size.

    >>> moment('2024-05-01 10:00:00+02:00'), moment(1714550400), moment('yesterday')
    ('2024-05-01T08:00:00+00:00', '2024-05-01T08:00:00+00:00', '')
    """
    if isinstance(found, str):
        found = found.strip().removesuffix(' UTC')
        found = float(found) if _NUMBER.fullmatch(found) else found
    try:
        if isinstance(found, int | float) and not isinstance(found, bool):
            for _ in range(3):
                found = found / 1000 if abs(found) > _SECONDS else found
            time = datetime.fromtimestamp(found, UTC)
        else:
            time = found if isinstance(found, datetime) else datetime.fromisoformat(str(found))
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ''
