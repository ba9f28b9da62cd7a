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
                    'I like very short answers of one or two sentences.',
                    'Short answers are best for me.',
                    'My answers should be brief.',
                    'I read only a line or two.',
                    'I want brief answers, a sentence or two.',
                ),
                'gate': ('Keep answers to me brief, two sentences at most.',),
                'test': (
                    'I prefer short answers, no more than two sentences.',
                    'Brief answers suit me: one or two sentences.',
                ),
            },
            {
                'train': ('That is too long for me. Please keep it short.', 'Too many words. I like short answers.'),
                'gate': ('Could you say that in fewer words?',),
                'test': ('Shorter, please. I do not read long answers.', 'Please be brief with me.'),
            },
        ),
        'long': Taste(
            lambda reply: len(words(reply)) >= 55,
            {
                'train': (
                    'I like long, detailed answers.',
                    'Long answers are best for me.',
                    'My answers should be long and go into depth.',
                    'I enjoy reading a lot about what I ask.',
                    'I want thorough answers with plenty of detail.',
                ),
                'gate': ('Answers to me should be long and full of detail.',),
                'test': ('I prefer detailed, longer answers.', 'Long answers with many details suit me.'),
            },
            {
                'train': (
                    'That is too short for me. Please go into detail.',
                    'Too brief. I like long, detailed answers.',
                ),
                'gate': ('Could you say a lot more about it?',),
                'test': ('Longer, please. I like to read many details.', 'Please tell me much more than that.'),
            },
        ),
    },
    'layout': {
        'list': Taste(
            lambda reply: list_items(reply) >= 2,
            {
                'train': (
                    'I like answers as a list.',
                    'Lists are best for me.',
                    'My answers should be lists, point by point.',
                    'I enjoy reading bullet points.',
                    'I want my answers as numbered or bulleted lists.',
                ),
                'gate': ('Give me lists, with one point a line.',),
                'test': ('I prefer lists: one item on each line.', 'Answers written as a list suit me.'),
            },
            {
                'train': ('I cannot follow this. Please make it a list.', 'I like lists. Put it in points for me.'),
                'gate': ('Could you set that out as bullet points?',),
                'test': ('As a list, please. One point a line.', 'Please write that as a list of items.'),
            },
        ),
        'prose': Taste(
            lambda reply: list_items(reply) == 0,
            {
                'train': (
                    'I like plain prose without any lists.',
                    'Plain text without bullets is best for me.',
                    'My answers should be paragraphs, not lists.',
                    'I enjoy reading whole sentences that follow each other.',
                    'I want flowing text, never a list.',
                ),
                'gate': ('Give me running text and no bullets.',),
                'test': ('I prefer plain paragraphs, no lists.', 'Answers in flowing sentences suit me, not lists.'),
            },
            {
                'train': (
                    'I do not like lists. Please write it as plain text.',
                    'No bullets for me. I like flowing text.',
                ),
                'gate': ('Could you write that as one paragraph and drop the points?',),
                'test': ('No lists, please. Just sentences.', 'Please write that in prose and not in items.'),
            },
        ),
    },
    'address': {
        'you': Taste(
            lambda reply: says_you(reply) >= 1,
            {
                'train': (
                    'I like to be spoken to directly, as "you".',
                    'Answers that say "you" are best for me.',
                    'My answers should speak to me as "you".',
                    'I enjoy being addressed.',
                    'I want answers that say "you" to me.',
                ),
                'gate': ('Talk to me in the second person: "you".',),
                'test': ('I prefer answers that address me as "you".', 'Speak to me as "you", that suits me.'),
            },
            {
                'train': ('This sounds distant. Please speak to me as "you".', 'I like it personal. Say "you" to me.'),
                'gate': ('Could you address me directly?',),
                'test': ('Talk to me, please. Use the word "you".', 'Please say it as if to me, with "you".'),
            },
        ),
        'impersonal': Taste(
            lambda reply: says_you(reply) == 0,
            {
                'train': (
                    'I like an impersonal style that never says "you".',
                    'Answers that do not address me are best for me.',
                    'My answers should be impersonal.',
                    'I enjoy a neutral, distant style.',
                    'I want neutral answers, without the word "you".',
                ),
                'gate': ('Stay impersonal and never address me.',),
                'test': (
                    'I prefer neutral wording that leaves out "you".',
                    'An impersonal tone suits me, never "you".',
                ),
            },
            {
                'train': (
                    'Please do not say "you". Keep it impersonal.',
                    'This is too personal. I like a neutral style.',
                ),
                'gate': ('Could you leave me out of the answer?',),
                'test': ('Without "you", please. Neutral words only.', 'Please write it without addressing me.'),
            },
        ),
    },
    'person': {
        'I': Taste(
            lambda reply: says_i(reply) >= 1,
            {
                'train': (
                    'I like it when the assistant speaks of itself, as "I".',
                    'Answers told as "I" are best for me.',
                    'My answers should be in the first person.',
                    'I enjoy a personal voice that says "I".',
                    'I want answers in the first person.',
                ),
                'gate': ('Answer me as "I", from your own view.',),
                'test': ('I prefer answers that are told as "I".', 'Answers in the first person suit me.'),
            },
            {
                'train': ('This is so cold. Please say what you think, as "I".', 'I like first person. Say "I".'),
                'gate': ('Could you speak for yourself?',),
                'test': ('In the first person, please.', 'Please tell me as "I", from your own view.'),
            },
        ),
        'no I': Taste(
            lambda reply: says_i(reply) == 0,
            {
                'train': (
                    'I like answers in which nobody says "I".',
                    'Answers without "I" are best for me.',
                    'My answers should not mention who answers.',
                    'I enjoy plain facts, without anybody\'s "I".',
                    'I want facts only, never the word "I".',
                ),
                'gate': ('Never speak of yourself to me.',),
                'test': ('I prefer answers without the word "I".', 'Answers in which nobody says "I" suit me.'),
            },
            {
                'train': ('Please leave yourself out of it.', 'I do not like "I". Keep to the facts.'),
                'gate': ('Could you not talk about yourself?',),
                'test': ('Without "I", please. Just facts.', 'Please do not speak of yourself.'),
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
