"""Defines the labels for user turns that follow a reply, and the code that all labellers share."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipelines.core.histories import author_id
from data_pipelines.core.records import Conversation
from data_pipelines.core.turns import request_index, turn_id, user_turn_indices

FEEDBACK, AGAIN, LIKED = 'reattempt_with_feedback', 'reattempt_without_feedback', 'positive_feedback'
LABELS = {  # arXiv 2509.25137, section 3; the descriptions are ours
    FEEDBACK: 'wants the same thing done again or differently, and says what was wrong or what to change',
    AGAIN: 'asks for the same again without a word on what was wrong',
    'continuation': 'goes on from the reply, taken as good: more of it, the next part, a further question',
    'new_request': 'asks for something that does not build on the reply',
    'clarification': 'answers a question, adds what was missing, or asks what the reply means',
    LIKED: 'is content with the reply, and asks for nothing else',
    'other': 'does none of these: a greeting, abuse, text that says nothing',
}
MAX_CHARACTERS = 300  # labellers read at most this many characters, from the start of a turn


class UserTurn(NamedTuple):
    """A user turn that follows a reply.

    Attributes:
      id: the turn id.
      request: the user turn that the reply answers.
      reply: the reply before this turn.
      text: the text of this turn.
      author: the id that `author_id` returns for the conversation; '' if it is unknown.
    """

    id: str
    request: str
    reply: str
    text: str
    author: str = ''


class Judgement(NamedTuple):
    """A label, its probability according to the labeller, and the words of the turn that best support the label."""

    label: str
    confidence: float
    quote: str


def turns_after_replies(conversation: Conversation) -> list[tuple[int, UserTurn]]:
    """Return a conversation's user turns that follow a reply, each with its turn index."""
    texts, turns = [message['content'] for message in conversation['messages']], []
    author = author_id(conversation['user_id'], conversation['id'])
    for turn_index in user_turn_indices(conversation['messages'], first=2):
        request_to_turn = texts[request_index(turn_index) : turn_index + 1]
        turns.append((turn_index, UserTurn(turn_id(conversation['id'], turn_index), *request_to_turn, author)))
    return turns


def repeats(turn: UserTurn) -> bool:
    """Whether a turn repeats the request before it word for word. Labellers do not need to read such a turn.

    Case, punctuation and spacing are ignored. A turn with any added or changed word does not count as a repeat, however
    long the repeated text is, because that word may be the only feedback.
    """
    request, text = (re.sub(r'[\W_]', '', text.lower()) for text in (turn.request, turn.text))
    return turn.request == turn.text or request == text != ''


def opening(turn: UserTurn) -> str:
    """Return the part of a turn that labellers read."""
    return turn.text[:MAX_CHARACTERS].rstrip()


def sentences(text: str) -> list[str]:
    """Split text into sentences, also at line breaks, and drop the parts that contain no word.

    If no part contains a word, return the whole text as the only part.

    >>> sentences('Too long. Say it in 1.5 lines!\\nThanks')
    ['Too long.', 'Say it in 1.5 lines!', 'Thanks']
    """
    parts = re.split(r'(?<=[.!?。！？])\s+|\n+', text.strip())
    return [part.strip() for part in parts if re.search(r'\w', part)] or [text]


def judge(turn: UserTurn, label: str, confidence: float, weights: Mapping[str, float]) -> Judgement:
    """Return a judgement that quotes one sentence from the turn's opening.

    Args:
      weights: the weight of each sentence in the opening. The sentence with the greatest weight is quoted. If several
        are tied, the first of them is quoted.
    """
    return Judgement(label, confidence, max(sentences(opening(turn)), key=weights.__getitem__))


def pieces(turns: Sequence[UserTurn]) -> list[str]:
    """Return the distinct texts to score: the openings of the turns, and the sentences in the openings."""
    openings = [opening(turn) for turn in turns]
    return list(dict.fromkeys(piece for text in openings for piece in (text, *sentences(text))))
