"""Reads a list of messages in any published layout, both for conversations and for preferences.

We train only on conversations in which user and assistant alternate. These departures are accepted and counted:

- Consecutive messages by one speaker become one turn, with a blank line between them.
- Messages from tools and calls to tools are left out. Text in the same message as a call is kept.
- System messages after the first turn are left out. System messages before it become one system text.
- Greetings, which the assistant writes before the first user turn, are left out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from rlhi_jax.config.stage_keys import INGEST_FIELDS
from rlhi_jax.data.tree import ROLES, BadRecord

# The defaults of `config.ingest.fields`, for code that reads messages without that config.
NAMES: Mapping[str, str] = INGEST_FIELDS.to_config().to_dict()

_TOOL_ROLES = frozenset(
    ('tool', 'function', 'ipython', 'observation', 'tool_response', 'tool_result', 'function_response')
)
_CALL_ROLES = frozenset(('function_call', 'tool_call'))
_CALLS = ('tool_calls', 'function_call')
OTHER_KEYS = (*_CALLS, 'refusal')  # keys of a message that are read besides its role and content
_PLAIN_NAME = re.compile(r'[A-Za-z][\w-]{0,19}')


class SpokenTurn(NamedTuple):
    """A turn, and the indices of the messages that were joined into it."""

    role: str
    text: str
    sources: tuple[int, ...]


class Messages(NamedTuple):
    """The content of a list of messages: the system texts before the first turn, and the turns."""

    system: tuple[str, ...]
    turns: tuple[SpokenTurn, ...]


def read_messages(raw: Sequence[Any], names: Mapping[str, str], counts: Counter) -> Messages:
    """Return the system texts and the turns of a list of messages; consecutive turns have different roles.

    Args:
      raw: the messages, as JSON or parquet represent them.
      names: the paths of the role and the content in a message, and the names of the roles, as in
        `config.ingest.fields`.
      counts: receives the numbers of messages that were left out or joined.

    Raises:
      BadRecord: a message has no text, or its role is unknown; the reason contains the role.
    """
    system, turns = [], []
    for index, message in enumerate(raw):
        spoken = _spoken(message, names, counts)
        if spoken is None:
            continue
        role, text = spoken
        if role == 'system':
            if turns:
                counts['system_messages_left_out'] += 1
            else:
                system.append(text)
        elif turns and turns[-1].role == role:
            counts['messages_joined'] += 1
            joined = '\n\n'.join(filter(None, (turns[-1].text, text)))
            turns[-1] = SpokenTurn(role, joined, (*turns[-1].sources, index))
        else:
            turns.append(SpokenTurn(role, text, (index,)))
    return Messages(tuple(filter(None, system)), tuple(turns))


def system_text(*texts: str) -> str:
    """Join the distinct, non-empty system texts with blank lines."""
    return '\n\n'.join(dict.fromkeys(filter(None, texts)))


def without_greeting(turns: Sequence[SpokenTurn], counts: Counter) -> tuple[SpokenTurn, ...]:
    """Return the turns without the first one if it is a greeting, that is, if the assistant wrote it."""
    greets = bool(turns) and turns[0].role == 'assistant'
    if greets:
        counts['greetings_left_out'] += 1
    return tuple(turns[greets:])


def message_list(value: Any) -> list[Any] | None:
    """Return a list of messages, parsed first if it is JSON text; return None for anything else.

    >>> message_list('[{"role": "user", "content": "Hi"}]'), message_list('Hi')
    ([{'role': 'user', 'content': 'Hi'}], None)
    """
    if isinstance(value, str) and value.lstrip().startswith('['):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _spoken(message: Any, names: Mapping[str, str], counts: Counter) -> tuple[str, str] | None:
    """Return a message's role and text; None if a tool wrote the message, or if it only calls a tool."""
    if not isinstance(message, dict):
        raise BadRecord('message_is_not_an_object')
    name = value(message, names['role'])
    if not isinstance(name, str):
        raise BadRecord('message_without_role')
    role = _role(name, names)
    if role in _TOOL_ROLES:
        counts['tool_messages_left_out'] += 1
        return None
    calls = _calls_tool(message, role)
    if calls:
        counts['tool_calls_left_out'] += 1
    if role in _CALL_ROLES:
        return None
    if role not in ('system', *ROLES):
        raise BadRecord(f'unknown_role:{name}' if _PLAIN_NAME.fullmatch(name) else 'unknown_role')
    if calls and value(message, names['content']) is None:
        return None
    text = _text(message, names['content'])
    return None if calls and not text else (role, text)


def involves_tool(message: dict[str, Any], names: Mapping[str, str]) -> bool:
    """Whether a message calls a tool or comes from one."""
    name = value(message, names['role'])
    role = _role(name, names) if isinstance(name, str) else ''
    return role in _TOOL_ROLES or _calls_tool(message, role)


def _calls_tool(message: dict[str, Any], role: str) -> bool:
    return role in _CALL_ROLES or any(message.get(key) for key in _CALLS)


def _role(name: str, names: Mapping[str, str]) -> str:
    """Return our name for a role ('system', 'user' or 'assistant'); an unknown name is returned in lower case."""
    folded = name.strip().lower()
    return _role_names(*(names[f'{ours}_role'] for ours in ('system', *ROLES))).get(folded, folded)


@cache
def _role_names(*theirs: str) -> dict[str, str]:
    """Map the role names in the data, in lower case, to our role names."""
    pairs = zip(('system', *ROLES), theirs, strict=True)
    return {name.strip().lower(): ours for ours, listed in pairs for name in listed.split('|')}


def _text(message: dict[str, Any], paths: str) -> str:
    """Return a message's text; the parts of an OpenAI-style message are joined by newlines.

    If the message has no other text, its text is the refusal, which OpenAI's API returns in a separate field.

    Raises:
      BadRecord: the message has no text, or one of its parts (such as an image) has no text.
    """
    text = None
    for path in paths.split('|'):
        texts, fault = list(values(message, path)), 'message_without_text'
        if texts and isinstance(texts[0], list):
            texts = [part.get('text') if isinstance(part, dict) else part for part in texts[0]]
            fault = 'part_without_text'
        try:
            text = '\n'.join(texts) if texts else text
        except TypeError:
            raise BadRecord(fault) from None
        if text:
            return clean(text)
    if not text and isinstance(message.get('refusal'), str):
        return clean(message['refusal'])
    if text is None:
        raise BadRecord('message_without_text')
    return text


def values(record: Any, paths: str) -> Iterator[Any]:
    """Yield every value that the paths lead to; a path through a list leads through every item of the list.

    >>> list(values(dict(a=dict(b=1), c=[dict(d=2), dict(d=None)]), 'x|a.b|c.d'))
    [1, 2]
    """
    for keys in split_paths(paths):
        reached = [record]
        for key in keys:
            items = [item for each in reached for item in (each if isinstance(each, list) else [each])]
            reached = [item[key] for item in items if isinstance(item, dict) and item.get(key) is not None]
        yield from reached


def value(record: Any, paths: str) -> Any:
    """Return the first value that the paths lead to, skipping '' and [].

    If all values are '' or [], return the first of them. If there are no values, return None.
    """
    first = None
    for each in values(record, paths):
        if each not in ('', []):
            return each
        first = each if first is None else first
    return first


@cache
def split_paths(paths: str) -> tuple[tuple[str, ...], ...]:
    """Split paths into keys: 'a.b|c' becomes (('a', 'b'), ('c',)). Cached, because every record needs the result."""
    return tuple(tuple(path.split('.')) for path in paths.split('|'))


def clean(text: str) -> str:
    """Strip surrounding white space, and replace lone surrogates, which UTF-8 cannot encode."""
    return text.encode('utf-8', 'replace').decode().strip()
