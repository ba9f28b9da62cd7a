"""What simulated users like, in opposing pairs, each side with a programmatic check; and when a reply satisfies at all.

Only the simulator and the evaluator import this module: what mines preferences must not know what users like.
"""

import dataclasses
import re
from collections.abc import Callable

from data_pipelines.sources.requests import Request

MIN_WORDS = 15
MIN_OWN_WORDS = 8  # different ones that the request does not hold
MIN_DISTINCT_TRIGRAMS = 0.7


@dataclasses.dataclass(frozen=True)
class Taste:
    """One side of an opposing pair.

    Attributes:
      check: whether a reply has what the taste asks for.
      personas: what a user says of themselves, and
      complaints: what they say when a reply misses it; paraphrases by split.
    """

    check: Callable[[str], bool]
    personas: dict[str, tuple[str, ...]]
    complaints: dict[str, tuple[str, ...]]


def words(reply: str) -> list[str]:
    """Its words, in lower case.

    >>> words("1. Don't knead it, fold it!")
    ['1', "don't", 'knead', 'it', 'fold', 'it']
    """
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", reply.lower())


def list_items(reply: str) -> int:
    return len(re.findall(r'^\s*(?:[-*•+]|\d+[.)])\s+\S', reply, re.MULTILINE))


def says_you(reply: str) -> int:
    return len(re.findall(r"\byou(?:r|rs|rself|['’]\w+)?\b", reply, re.IGNORECASE))


def says_i(reply: str) -> int:
    return len(re.findall(r'\b(?:I|my|myself|me)\b', reply))


TASTES: dict[str, dict[str, Taste]] = {
    'length': {
        'short': Taste(
            lambda reply: len(words(reply)) <= 30,
            {
                'train': (
                    'Answer me in one short sentence or two.',
                    'Keep your answers to me very short.',
                    'I want brief answers: a sentence or two.',
                    'Give me the short version, two sentences at most.',
                    'Be brief with me.',
                ),
                'gate': (
                    'Keep answers to me brief, two sentences at most.',
                    'Reply to me in a sentence or two, no more.',
                    'Short answers for me, please: two sentences.',
                ),
                'test': (
                    'Tell me things in one or two brief sentences.',
                    'My answers should be tiny: two sentences.',
                ),
            },
            {
                'train': ('That is too long for me. Please keep it short.', 'Too many words. I like short answers.'),
                'gate': (
                    'Could you say that in fewer words?',
                    'Shorter, please. I do not read long answers.',
                    'Please be brief with me.',
                ),
                'test': (
                    'Cut it down, please. I only read a few words.',
                    'Much shorter for me, please.',
                ),
            },
        ),
        'long': Taste(
            lambda reply: len(words(reply)) >= 55,
            {
                'train': (
                    'Answer me at length, with a lot of detail.',
                    'Keep nothing from me: I want long answers.',
                    'I want thorough answers with plenty of detail.',
                    'Give me the long version, with every detail.',
                    'Be thorough with me.',
                ),
                'gate': (
                    'Answers to me should be long and full of detail.',
                    'Reply to me with long, detailed text.',
                    'Long answers for me, please, with many details.',
                ),
                'test': (
                    'Tell me things at great length, with all the details.',
                    'My answers should be long and say a lot.',
                ),
            },
            {
                'train': (
                    'That is too short for me. Please go into detail.',
                    'Too brief. I like long, detailed answers.',
                ),
                'gate': (
                    'Could you say a lot more about it?',
                    'Longer, please. I like to read many details.',
                    'Please tell me much more than that.',
                ),
                'test': (
                    'Go deeper, please. I read long texts.',
                    'Much more detail for me, please.',
                ),
            },
        ),
    },
    'layout': {
        'list': Taste(
            lambda reply: list_items(reply) >= 2,
            {
                'train': (
                    'Answer me with a bulleted list.',
                    'Write your answers to me as a list.',
                    'I want my answers as numbered or bulleted lists.',
                    'Give me points, one a line.',
                    'Use bullet points with me.',
                ),
                'gate': (
                    'Give me lists, with one point a line.',
                    'Reply to me in the form of a list.',
                    'Lists for me, please: one item on each line.',
                ),
                'test': (
                    'Tell me things as a bulleted list.',
                    'My answers should be lists with an item a line.',
                ),
            },
            {
                'train': ('I cannot follow this. Please make it a list.', 'I like lists. Put it in points for me.'),
                'gate': (
                    'Could you set that out as bullet points?',
                    'As a list, please. One point a line.',
                    'Please write that as a list of items.',
                ),
                'test': (
                    'Make bullet points of it, please.',
                    'One item a line for me, please.',
                ),
            },
        ),
        'prose': Taste(
            lambda reply: list_items(reply) == 0,
            {
                'train': (
                    'Answer me in plain prose, without a list.',
                    'Write your answers to me as one paragraph.',
                    'I want flowing text, never a list.',
                    'Give me whole sentences in one piece.',
                    'Use no bullet points with me.',
                ),
                'gate': (
                    'Give me running text and no bullets.',
                    'Reply to me in the form of a paragraph.',
                    'Plain text for me, please: no list items.',
                ),
                'test': (
                    'Tell me things in one flowing paragraph.',
                    'My answers should be plain sentences with no list.',
                ),
            },
            {
                'train': (
                    'I do not like lists. Please write it as plain text.',
                    'No bullets for me. I like flowing text.',
                ),
                'gate': (
                    'Could you write that as one paragraph and drop the points?',
                    'No lists, please. Just sentences.',
                    'Please write that in prose and not in items.',
                ),
                'test': (
                    'Make one paragraph of it, please.',
                    'No bullet points for me, please.',
                ),
            },
        ),
    },
    'address': {
        'you': Taste(
            lambda reply: says_you(reply) >= 1,
            {
                'train': (
                    'Speak to me as "you" in your answer.',
                    'Say "you" to me in your answers.',
                    'I want answers that say "you" and "your" to me.',
                    'Talk to me directly: "you can", "you will".',
                    'Use the word "you" with me.',
                ),
                'gate': (
                    'Talk to me in the second person: "you".',
                    'Reply to me directly, as "you".',
                    'Address me as "you", please.',
                ),
                'test': (
                    'Tell me things with the word "you".',
                    'My answers should speak to me: "you can".',
                ),
            },
            {
                'train': ('This sounds distant. Please speak to me as "you".', 'I like it personal. Say "you" to me.'),
                'gate': (
                    'Could you address me directly?',
                    'Talk to me, please. Use the word "you".',
                    'Please say it as if to me, with "you".',
                ),
                'test': (
                    'Speak to me, please: say "you".',
                    'More "you" and "your" for me, please.',
                ),
            },
        ),
        'impersonal': Taste(
            lambda reply: says_you(reply) == 0,
            {
                'train': (
                    'Do not use the word "you" in your answer.',
                    'Leave me out of your answers.',
                    'I want neutral answers, without the word "you".',
                    'Write about things, never about me.',
                    'Use an impersonal style with me.',
                ),
                'gate': (
                    'Stay impersonal and never address me.',
                    'Reply to me without saying "you".',
                    'Neutral wording for me, please, never "you".',
                ),
                'test': (
                    'Tell me things without the word "you".',
                    'My answers should be neutral and never say "you".',
                ),
            },
            {
                'train': (
                    'Please do not say "you". Keep it impersonal.',
                    'This is too personal. I like a neutral style.',
                ),
                'gate': (
                    'Could you leave me out of the answer?',
                    'Without "you", please. Neutral words only.',
                    'Please write it without addressing me.',
                ),
                'test': (
                    'Do not speak to me like that: no "you".',
                    'A neutral text for me, please.',
                ),
            },
        ),
    },
    'person': {
        'I': Taste(
            lambda reply: says_i(reply) >= 1,
            {
                'train': (
                    'Speak as "I" in your answer.',
                    'Say "I" in your answers to me.',
                    'I want answers in the first person.',
                    'Talk about yourself: "I think", "I like".',
                    'Use the word "I" with me.',
                ),
                'gate': (
                    'Answer me as "I", from your own view.',
                    'Reply to me in the first person, as "I".',
                    'A personal voice for me, please, that says "I".',
                ),
                'test': (
                    'Tell me things as "I", in your own voice.',
                    'My answers should say "I think" or "I like".',
                ),
            },
            {
                'train': ('This is so cold. Please say what you think, as "I".', 'I like first person. Say "I".'),
                'gate': (
                    'Could you speak for yourself?',
                    'In the first person, please.',
                    'Please tell me as "I", from your own view.',
                ),
                'test': (
                    'Speak as yourself, please: say "I".',
                    'Your own "I" for me, please.',
                ),
            },
        ),
        'no I': Taste(
            lambda reply: says_i(reply) == 0,
            {
                'train': (
                    'Do not use the word "I" in your answer.',
                    'Leave yourself out of your answers.',
                    'I want facts only, never the word "I".',
                    'Write about things, never about yourself.',
                    'Use no first person with me.',
                ),
                'gate': (
                    'Never speak of yourself to me.',
                    'Reply to me without saying "I".',
                    'Plain facts for me, please, nothing about yourself.',
                ),
                'test': (
                    'Tell me things without the word "I".',
                    'My answers should be facts, with no "I" in them.',
                ),
            },
            {
                'train': ('Please leave yourself out of it.', 'I do not like "I". Keep to the facts.'),
                'gate': (
                    'Could you not talk about yourself?',
                    'Without "I", please. Just facts.',
                    'Please do not speak of yourself.',
                ),
                'test': (
                    'Do not say "I", please.',
                    'Facts alone for me, please.',
                ),
            },
        ),
    },
}


def opposite(pair: str, side: str) -> str:
    (other,) = TASTES[pair].keys() - {side}
    return other


def valid(reply: str, request: Request, finished: bool) -> bool:
    """Whether a reply can satisfy anybody: long enough, on topic, not repetitive, not cut off.

    On topic is a reply that names what was asked about, or has two words that belong to the topic; either way most of
    it must be its own words, so that an echo of the request is not a reply to it.
    """
    own, asked = words(reply), set(words(request.text))
    named = any(word.startswith(request.about) for word in own)
    belonging = {stem for stem in request.words for word in own if word.startswith(stem)}
    on_topic = named or len(belonging) >= 2
    echo = len(set(own) - asked) < MIN_OWN_WORDS
    trigrams = list(zip(own, own[1:], own[2:], strict=False))
    distinct = len(set(trigrams)) >= MIN_DISTINCT_TRIGRAMS * len(trigrams)
    return finished and len(own) >= MIN_WORDS and on_topic and not echo and distinct


def satisfaction(reply: str, request: Request, finished: bool, tastes: dict[str, str]) -> float:
    """The share of a user's tastes (pair → side) that a valid reply meets; 0 for any other reply."""
    if not valid(reply, request, finished):
        return 0.0
    return sum(TASTES[pair][side].check(reply) for pair, side in tastes.items()) / len(tastes)
