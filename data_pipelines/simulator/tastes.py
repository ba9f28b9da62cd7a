"""What simulated users like, in opposing pairs, each side with a programmatic check; and when a reply satisfies at all.

Only the simulator and the evaluator import this module: what mines preferences must not know what users like.
"""

import dataclasses
import re
from collections.abc import Callable

from data_pipelines.simulator.requests import Request
from data_pipelines.simulator.wordings import COMPLAINTS, PERSONAS
from data_pipelines.text.degenerate import is_repetitive, words

MIN_WORDS = 15
MIN_OWN_WORDS = 8  # different ones that the request does not hold
# What may follow a stem that is a whole word; a longer stem, such as "pollin", may go on in any way.
SUFFIXES = ('', "'s", '’s', 's', 'es', 'ed', 'd', 'y', 'er', 'ers', 'ing', 'ful')
WHOLE_WORD = 4  # stems up to this length


@dataclasses.dataclass(frozen=True)
class Taste:
    """One side of an opposing pair.

    Attributes:
      check: whether a reply has what the taste asks for.
      personas: what a user says of themselves, by split.
      complaints: what they say when a reply misses it, by split.
    """

    check: Callable[[str], bool]
    personas: dict[str, tuple[str, ...]]
    complaints: dict[str, tuple[str, ...]]


def has_stem(word: str, stem: str) -> bool:
    """Whether a word is a form of a stem.

    >>> has_stem('bees', 'bee'), has_stem('been', 'bee'), has_stem('pollination', 'pollin')
    (True, False, True)
    """
    if not word.startswith(stem):
        return False
    return len(stem) > WHOLE_WORD or word[len(stem) :] in SUFFIXES


def not_copied(said: list[str], asked: list[str]) -> list[str]:
    """What was said, less every run of three words or more that was asked in the same order.

    >>> not_copied('why might i like bees bees make honey'.split(), 'why might i like bees'.split())
    ['bees', 'make', 'honey']
    """
    runs = set(zip(asked, asked[1:], asked[2:], strict=False))
    copied = {place + k for place in range(len(said) - 2) if tuple(said[place : place + 3]) in runs for k in range(3)}
    return [word for place, word in enumerate(said) if place not in copied]


def list_items(reply: str) -> int:
    return len(re.findall(r'^\s*(?:[-*•+]|\d+[.)])\s+\S', reply, re.MULTILINE))


def says_you(reply: str) -> int:
    return len(re.findall(r"\byou(?:r|rs|rself|['’]\w+)?\b", reply, re.IGNORECASE))


def says_i(reply: str) -> int:
    return len(re.findall(r'\b(?:I|my|myself|me)\b', reply))


def mentions(reply: str, *stems: str) -> bool:
    return any(word.startswith(stems) for word in words(reply))


# Whether a reply has what each side of an opposing pair asks for.
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
    'person': {
        'I': lambda reply: says_i(reply) >= 1,
        'no I': lambda reply: says_i(reply) == 0,
    },
}
TASTES = {
    pair: {side: Taste(check, PERSONAS[pair][side], COMPLAINTS[pair][side]) for side, check in sides.items()}
    for pair, sides in _CHECKS.items()
}


def opposite(pair: str, side: str) -> str:
    (other,) = TASTES[pair].keys() - {side}
    return other


def valid(reply: str, request: Request, finished: bool) -> bool:
    """Whether a reply can satisfy anybody: long enough, on topic, not repetitive, not cut off.

    On topic is a reply that names what was asked about, or has two words that belong to the topic. What it copies from
    the request does not count, so that an echo is no reply, whatever filler follows.
    """
    everything, asked = words(reply), words(request.text)
    own = not_copied(everything, asked)
    named = any(has_stem(word, request.about) for word in own)
    belonging = {stem for stem in request.words for word in own if has_stem(word, stem)}
    on_topic = named or len(belonging) >= 2
    echo = len(set(own) - set(asked)) < MIN_OWN_WORDS
    return finished and len(everything) >= MIN_WORDS and on_topic and not echo and not is_repetitive(reply)


def share_met(reply: str, tastes: dict[str, str]) -> float:
    """The share of tastes (pair → side) whose check a reply passes, from 0 to 1."""
    return sum(TASTES[pair][side].check(reply) for pair, side in tastes.items()) / len(tastes)


def satisfaction(reply: str, request: Request, finished: bool, tastes: dict[str, str]) -> float:
    """The share of a user's tastes (pair → side) that a valid reply meets; 0 for any other reply."""
    if not valid(reply, request, finished):
        return 0.0
    return share_met(reply, tastes)
