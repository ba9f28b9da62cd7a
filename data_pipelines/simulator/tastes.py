"""The tastes of simulated users, and a test for valid replies.

Each taste has two opposite sides, and a function for each side checks whether a reply satisfies it. Only the simulator
and the evaluation import this module, because stages that mine preferences must not know what users like.
"""

import dataclasses
import re
from collections.abc import Callable

from data_pipelines.simulator.requests import Request
from data_pipelines.simulator.wordings import COMPLAINTS, INSTRUCTIONS, PERSONAS
from data_pipelines.text.degenerate import is_repetitive, words

Tastes = dict[str, str]  # taste → side

MIN_WORDS = 15  # in a valid reply
MIN_NEW_WORDS = 8  # distinct words in a valid reply that the request does not contain
# Endings that may follow a stem of at most `WHOLE_WORD` letters. A longer stem, such as "pollin", may have any ending.
SUFFIXES = ('', "'s", '’s', 's', 'es', 'ed', 'd', 'y', 'er', 'ers', 'ing', 'ful')
WHOLE_WORD = 4  # stems with at most this many letters count as whole words


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a taste, such as short replies.

    Attributes:
      check: a function that returns whether a reply satisfies this side.
      personas: sentences for a persona that ask for this side, keyed by split.
      complaints: follow-ups to a reply that fails the check, keyed by split.
      instruction: tells a model to satisfy this side.
    """

    check: Callable[[str], bool]
    personas: dict[str, list[str]]
    complaints: dict[str, list[str]]
    instruction: str


def has_stem(word: str, stem: str) -> bool:
    """Whether a word is a form of a stem.

    >>> has_stem('bees', 'bee'), has_stem('been', 'bee'), has_stem('pollination', 'pollin')
    (True, False, True)
    """
    if not word.startswith(stem):
        return False
    return len(stem) > WHOLE_WORD or word[len(stem) :] in SUFFIXES


def not_copied(reply: list[str], request: list[str]) -> list[str]:
    """Return the words of a reply, leaving out every run of three or more words that also occurs in the request.

    >>> not_copied('why might i like bees bees make honey'.split(), 'why might i like bees'.split())
    ['bees', 'make', 'honey']
    """
    runs = set(zip(request, request[1:], request[2:], strict=False))
    copied = {start + k for start in range(len(reply) - 2) if tuple(reply[start : start + 3]) in runs for k in range(3)}
    return [word for index, word in enumerate(reply) if index not in copied]


def list_items(reply: str) -> int:
    return len(re.findall(r'^[^\S\n]*(?:[-*•+]|\d+[.)])\s+\S', reply, re.MULTILINE))


def says_you(reply: str) -> int:
    return len(re.findall(r"\byou(?:r|rs|rself|['’]\w+)?\b", reply, re.IGNORECASE))


def says_i(reply: str) -> int:
    return len(re.findall(r'\b(?:I|my|myself|me)\b', reply))


def gives_figures(reply: str) -> bool:
    """Whether a reply has a number of two digits or more, or speaks of percentages, millions or statistics.

    >>> gives_figures('1. Cats purr.'), gives_figures('Cats sleep 15 hours a day.')
    (False, True)
    """
    return bool(re.search(r'\d\d|\d\s?%|\bper ?cent|\bmillion|\bstatistic', reply, re.IGNORECASE))


def mentions(reply: str, *stems: str) -> bool:
    return any(word.startswith(stems) for word in words(reply))


# The check for each side of each taste.
_CHECKS: dict[str, dict[str, Callable[[str], bool]]] = {
    'length': {
        'short': lambda reply: len(words(reply)) <= 30,
        'long': lambda reply: len(words(reply)) >= 55,
    },
    'layout': {
        'list': lambda reply: list_items(reply) >= 2,
        'prose': lambda reply: list_items(reply) == 0,
    },
    'address': {
        'you': lambda reply: says_you(reply) >= 1,
        'impersonal': lambda reply: says_you(reply) == 0,
    },
    'angle': {
        'children': lambda reply: mentions(reply, 'child', 'kid'),
        'history': lambda reply: mentions(reply, 'histor', 'ancient', 'centur'),
    },
    'theme': {
        'statistics': gives_figures,
        'warnings': lambda reply: mentions(reply, 'warn', 'danger', 'risk', 'caution', 'careful'),
    },
    'person': {
        'I': lambda reply: says_i(reply) >= 1,
        'no I': lambda reply: says_i(reply) == 0,
    },
}
TASTES: dict[str, dict[str, Side]] = {
    taste: {
        side: Side(check, PERSONAS[taste][side], COMPLAINTS[taste][side], INSTRUCTIONS[taste][side])
        for side, check in sides.items()
    }
    for taste, sides in _CHECKS.items()
}

# Every wording of a complaint → the taste and the side that it names.
NAMED_BY = {
    text: (taste, side)
    for taste, sides in TASTES.items()
    for side, spec in sides.items()
    for texts in spec.complaints.values()
    for text in texts
}


def opposite(taste: str, side: str) -> str:
    """Return the other side of a taste."""
    (other,) = TASTES[taste].keys() - {side}
    return other


def opposites(tastes: Tastes) -> Tastes:
    """Return the tastes with each side reversed; for example, 'short' becomes 'long'."""
    return {taste: opposite(taste, side) for taste, side in tastes.items()}


def valid(reply: str, request: Request, finished: bool) -> bool:
    """Whether a reply is valid: finished, long enough, on topic, not repetitive and not an echo of the request.

    A reply is on topic if it names the topic of the request or contains two words related to it. Runs of words copied
    from the request do not count (see `not_copied`). A reply is an echo if it contains fewer than `MIN_NEW_WORDS`
    distinct words that are not in the request.
    """
    reply_words, request_words = words(reply), words(request.text)
    new = not_copied(reply_words, request_words)
    names_topic = any(has_stem(word, request.about) for word in new)
    stems_of_topic = {stem for stem in request.words for word in new if has_stem(word, stem)}
    on_topic = names_topic or len(stems_of_topic) >= 2
    echo = len(set(new) - set(request_words)) < MIN_NEW_WORDS
    return finished and len(reply_words) >= MIN_WORDS and on_topic and not echo and not is_repetitive(reply)


def share_met(reply: str, tastes: Tastes) -> float:
    """Return the fraction of tastes that a reply satisfies, from 0 to 1."""
    return sum(TASTES[taste][side].check(reply) for taste, side in tastes.items()) / len(tastes)


def satisfaction(reply: str, request: Request, finished: bool, tastes: Tastes) -> float:
    """Return the fraction of a user's tastes that a valid reply satisfies, from 0 to 1; 0 for an invalid reply."""
    if not valid(reply, request, finished):
        return 0.0
    return share_met(reply, tastes)
