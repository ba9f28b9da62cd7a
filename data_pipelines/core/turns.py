"""Turn ids, and conversion between messages and turns.

A turn's id is CONVERSATION/TURN_INDEX. The index counts messages from 0, so user turns have even indices and replies
have odd ones. The id of a preference pair is a turn's id, a space, and the pair's kind. Conversation ids come from the
data and may contain anything, even slashes, so turn ids and pair ids are parsed from the end.
"""

from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.core.records import Message

# Kinds of preference pairs. OWN and STRANGER are the two pairs of a record of the stage `strangers`.
REWRITE, BEST_WORST, REACTION, OWN, STRANGER = 'rewrite', 'best/worst', 'reaction', 'own', 'stranger'

Turn = tuple[str, str]  # (role, content)


def turn_id(conversation: str, turn_index: int) -> str:
    return f'{conversation}/{turn_index}'


def conversation_of(turn: str) -> str:
    """Return the conversation id in a turn id.

    >>> conversation_of('c/2/4')
    'c/2'
    """
    return turn.rsplit('/', 1)[0]


def index_of(turn: str) -> int:
    """Return the turn index in a turn id.

    >>> index_of('c/2/4')
    4
    """
    return int(turn.rsplit('/', 1)[1])


def pair_id(turn: str, kind: str) -> str:
    return f'{turn} {kind}'


def turn_of(pair: str) -> str:
    """Return the turn id in a pair id. Any other id is returned unchanged.

    >>> turn_of('c/2 best/worst'), turn_of('c/2')
    ('c/2', 'c/2')
    """
    kind = kind_of(pair)
    return pair.removesuffix(f' {kind}') if kind else pair


def kind_of(pair: str) -> str:
    """Return the kind in a pair id, or '' if an id contains none.

    >>> kind_of('c/2 best/worst'), kind_of('c/2')
    ('best/worst', '')
    """
    _, _, kind = pair.rpartition(' ')
    return kind if kind in (REWRITE, BEST_WORST, REACTION, OWN, STRANGER) else ''


def is_strangers(pair: str) -> bool:
    """Whether a pair states the preference of a stranger, so that its conversation is another user's."""
    return kind_of(pair) == STRANGER


def user_turn_indices(messages: Sequence[Message], first: int = 0) -> range:
    """Return the indices of a conversation's user turns, starting from `first`, which must be even.

    >>> list(user_turn_indices([{}] * 5)), list(user_turn_indices([{}] * 5, first=2))
    ([0, 2, 4], [2, 4])
    """
    return range(first, len(messages), 2)


def request_index(feedback_index: int) -> int:
    """Return the turn index of a request, given the turn index of the user's feedback on the reply to that request.

    >>> request_index(4)
    2
    """
    return feedback_index - 2


def exchange_number(turn_index: int) -> int:
    """Return how many exchanges come before a turn. An exchange is a user turn and the reply to it.

    >>> exchange_number(0), exchange_number(4)
    (0, 2)
    """
    return turn_index // 2


def to_turns(messages: Iterable[Mapping[str, str]]) -> tuple[Turn, ...]:
    """Return the (role, content) of each message.

    >>> to_turns([dict(role='user', content='Why?')])
    (('user', 'Why?'),)
    """
    return tuple((message['role'], message['content']) for message in messages)


def to_messages(turns: Iterable[Turn]) -> list[Message]:
    """Return turns as messages, the form used in records.

    >>> to_messages([('user', 'Why?')])
    [{'role': 'user', 'content': 'Why?'}]
    """
    return [Message(role=role, content=content) for role, content in turns]
