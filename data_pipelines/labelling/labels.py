"""Labels of a user's turn after a reply, and what all labellers of such turns share."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipelines.core.records import Conversation
from data_pipelines.core.turns import request_index, turn_id, user_turn_indices

FEEDBACK, AGAIN = 'reattempt_with_feedback', 'reattempt_without_feedback'
LABELS = {  # arXiv 2509.25137, section 3; the meanings are ours
    FEEDBACK: 'wants the same thing done again or differently, and says what was wrong or what to change',
    AGAIN: 'asks for the same again without a word on what was wrong',
    'continuation': 'goes on from the reply, taken as good: more of it, the next part, a further question',
    'new_request': 'asks for something that does not build on the reply',
    'clarification': 'answers a question, adds what was missing, or asks what the reply means',
    'positive_feedback': 'is content with the reply, and asks for nothing else',
    'other': 'does none of these: a greeting, abuse, text that says nothing',
}
MAX_CHARACTERS = 300  # characters of a turn that labellers read


class UserTurn(NamedTuple):
    """A user's turn `text` after the reply to a request; `id` is the turn's id."""

    id: str
    request: str
    reply: str
    text: str


class Judgement(NamedTuple):
    """A label, the probability that the labeller gives it, and the words of the turn that support it most."""

    label: str
    confidence: float
    quote: str


def turns_after_replies(conversation: Conversation) -> list[tuple[int, UserTurn]]:
    """A conversation's user turns after a reply, each with its turn index."""
    texts, turns = [message['content'] for message in conversation['messages']], []
    for turn_index in user_turn_indices(conversation['messages'], first=2):
        request_to_turn = texts[request_index(turn_index) : turn_index + 1]
        turns.append((turn_index, UserTurn(turn_id(conversation['id'], turn_index), *request_to_turn)))
    return turns


def repeats(turn: UserTurn) -> bool:
    """Whether a turn repeats its request word for word, so that no labeller needs to read it.

    Case, punctuation and spacing do not count. Any added or changed word may be the only feedback there is, however
    long the text that is pasted again.
    """
    request, text = (re.sub(r'[\W_]', '', text.lower()) for text in (turn.request, turn.text))
    return turn.request == turn.text or request == text != ''


def opening(turn: UserTurn) -> str:
    """The part of a turn that labellers read."""
    return turn.text[:MAX_CHARACTERS].rstrip()


def sentences(text: str) -> list[str]:
    """The sentences or lines of a text, unchanged; at least one.

    >>> sentences('Too long. Say it in 1.5 lines!\\nThanks')
    ['Too long.', 'Say it in 1.5 lines!', 'Thanks']
    """
    parts = re.split(r'(?<=[.!?。！？])\s+|\n+', text.strip())
    return [part.strip() for part in parts if re.search(r'\w', part)] or [text]


def judge(turn: UserTurn, label: str, confidence: float, weights: Mapping[str, float]) -> Judgement:
    """A judgement that quotes the sentence of the turn's opening with the greatest weight, the first among equals."""
    return Judgement(label, confidence, max(sentences(opening(turn)), key=weights.__getitem__))


def pieces(turns: Sequence[UserTurn]) -> list[str]:
    """The distinct texts that a labeller scores: the turns' openings and, for quotes, the openings' sentences."""
    openings = [opening(turn) for turn in turns]
    return list(dict.fromkeys(piece for text in openings for piece in (text, *sentences(text))))
