"""What a user's turn after a reply can be, and what every labeller of such turns shares."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_pipelines.core.stage import Record

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
MAX_CHARACTERS = 300  # of a turn that are looked at


class Turn(NamedTuple):
    """A user's turn `text` after the reply to a request; `id` is CONVERSATION/PLACE."""

    id: str
    request: str
    reply: str
    text: str


class Judgement(NamedTuple):
    """A label, the probability that the labeller gives it, and the words of the turn that speak for it most."""

    label: str
    confidence: float
    quote: str


def turns_after_replies(talk: Record) -> list[tuple[int, Turn]]:
    """A conversation's user turns after a reply, with their places."""
    said = [message['content'] for message in talk['messages']]
    return [(place, Turn(f'{talk["id"]}/{place}', *said[place - 2 : place + 1])) for place in range(2, len(said), 2)]


def repeats(turn: Turn) -> bool:
    """Whether a turn is its request once more, word for word: no labeller needs to be asked.

    What a user adds or changes may be all the feedback there is, however long the text is that they paste again.
    """
    asked, said = (re.sub(r'[\W_]', '', text.lower()) for text in (turn.request, turn.text))
    return turn.request == turn.text or asked == said != ''


def opening(turn: Turn) -> str:
    """As much of a turn as labellers look at."""
    return turn.text[:MAX_CHARACTERS].rstrip()


def sentences(text: str) -> list[str]:
    """The sentences or lines of a text, as they stand in it; at least one.

    >>> sentences('Too long. Say it in 1.5 lines!\\nThanks')
    ['Too long.', 'Say it in 1.5 lines!', 'Thanks']
    """
    found = re.split(r'(?<=[.!?。！？])\s+|\n+', text.strip())
    return [each.strip() for each in found if re.search(r'\w', each)] or [text]


def judge(turn: Turn, label: str, confidence: float, weights: Mapping[str, float]) -> Judgement:
    """A judgement that quotes the sentence of the turn's opening with the greatest weight, of equals the first."""
    return Judgement(label, confidence, max(sentences(opening(turn)), key=weights.__getitem__))


def pieces(turns: Sequence[Turn]) -> list[str]:
    """Every text that a labeller scores to judge turns: their openings and, for quotes, those openings' sentences."""
    openings = [opening(turn) for turn in turns]
    return list(dict.fromkeys(piece for text in openings for piece in (text, *sentences(text))))
