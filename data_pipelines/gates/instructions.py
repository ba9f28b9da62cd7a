"""Requests with an instruction that a program can check, in the manner of IFEval (arXiv 2311.07911)."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from data_pipelines.text.degenerate import words


class Instruction(NamedTuple):
    """A request with an instruction, and a function that says whether a reply follows it."""

    request: str
    followed: Callable[[str], bool]


def _lines(reply: str) -> list[str]:
    return [line for line in reply.splitlines() if line.strip()]


def _items(reply: str, pattern: str) -> int:
    return len(re.findall(rf'^\s*{pattern}\s+\S', reply, re.MULTILINE))


def _sentences(reply: str) -> int:
    return len(re.findall(r'[.!?](?=\s|$)', reply.strip()))


def _has_keys(reply: str, *keys: str) -> bool:
    """Whether a reply is a JSON object with these keys; it may be in a code block.

    >>> _has_keys('```json\\n{"a": 1}\\n```', 'a'), _has_keys('{"a": 1}', 'b')
    (True, False)
    """
    text = re.sub(r'\A```\w*\n|\n?```\Z', '', reply.strip())
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return isinstance(value, dict) and value.keys() == {*keys}
    return False


INSTRUCTIONS = (
    Instruction('Name the capital of Italy. Answer with a single word.', lambda r: len(words(r)) == 1),
    Instruction('Is ice lighter than water? Answer only "yes" or "no".', lambda r: words(r) in (['yes'], ['no'])),
    Instruction('How many legs does a spider have? Give the number alone.', lambda r: r.strip(' .') in ('8', 'eight')),
    Instruction('Describe autumn in at most 20 words.', lambda r: 0 < len(words(r)) <= 20),
    Instruction('Explain what a library is for, in at least 60 words.', lambda r: len(words(r)) >= 60),
    Instruction('Describe the sea in exactly two sentences.', lambda r: _sentences(r) == 2),
    Instruction('Why do we sleep? Answer in one sentence.', lambda r: _sentences(r) == 1),
    Instruction('List three fruits, each on a line that begins with "- ".', lambda r: _items(r, '-') == 3),
    Instruction('List four tools as a numbered list.', lambda r: _items(r, r'\d+[.)]') == 4),
    Instruction(
        'Name three colours in one line, separated by commas.', lambda r: len(_lines(r)) == 1 and r.count(',') == 2
    ),
    Instruction('Tell me about bread without using any comma.', lambda r: bool(words(r)) and ',' not in r),
    Instruction('What is a bicycle? Write everything in capital letters.', str.isupper),
    Instruction('What is a river? Write everything in lower-case letters.', str.islower),
    Instruction('Begin your answer with the word "Indeed". What is honey?', lambda r: words(r)[:1] == ['indeed']),
    Instruction('End your answer with the words "That is all." What is tea?', lambda r: r.endswith('That is all.')),
    Instruction(
        'Put your whole answer in double quotation marks. What is a friend?',
        lambda r: len(r) > 2 and r[0] in '"“' and r[-1] in '"”',
    ),
    Instruction('Describe a village. Use the word "lantern".', lambda r: 'lantern' in words(r)),
    Instruction('Describe a garden without the word "flower".', lambda r: bool(r) and 'flower' not in r.lower()),
    Instruction(
        'Write two paragraphs about winter, with a blank line between them.',
        lambda r: len(re.split(r'\n\s*\n', r.strip())) == 2,
    ),
    Instruction(
        'Give a made-up person as a JSON object with the keys "name" and "age", and nothing else.',
        lambda r: _has_keys(r, 'name', 'age'),
    ),
    Instruction('Talk about music and end with a question.', lambda r: r.endswith('?')),
    Instruction(
        'Write a poem about rain with a title in double angle brackets, like <<Title>>.',
        lambda r: bool(re.search(r'<<[^<>\n]+>>', r)),
    ),
    Instruction('Write exactly four lines about a cat.', lambda r: len(_lines(r)) == 4),
    Instruction('What is a clock? Do not use any digit.', lambda r: bool(r) and not re.search(r'\d', r)),
)
