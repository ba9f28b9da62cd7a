"""Recognizes degenerate replies from their text alone: replies that repeat themselves or open another turn.

Nothing here depends on what users like, so the simulator and the stages that mine preferences can share this module.
"""

import re
import zlib

from data_pipelines.text import control_tokens

MIN_DISTINCT_TRIGRAMS = 0.7  # minimum share of word trigrams that are distinct
MIN_COMPRESSED = 0.15  # minimum ratio of compressed to original size; without spaces, a repetitive text may be one word
_HEADING = re.compile(r'^#{2,4} ?(?:Human|Assistant|User|Instruction):', re.MULTILINE)


def words(reply: str) -> list[str]:
    """Return the words of a reply in lower case.

    >>> words("1. Don't knead it, fold it!")
    ['1', "don't", 'knead', 'it', 'fold', 'it']
    """
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", reply.lower())


def is_repetitive(reply: str) -> bool:
    """Whether a reply repeats itself: too few of its word trigrams are distinct, or its bytes compress too well.

    >>> is_repetitive('Bees make honey. ' * 9), is_repetitive('哈' * 99), is_repetitive('Bees make honey in a hive.')
    (True, True, False)
    """
    in_order, data = words(reply), reply.encode('utf-8', 'surrogatepass')
    trigrams = list(zip(in_order, in_order[1:], in_order[2:], strict=False))
    few_distinct = len(set(trigrams)) < MIN_DISTINCT_TRIGRAMS * len(trigrams)
    return few_distinct or len(zlib.compress(data)) < MIN_COMPRESSED * len(data)


def opens_a_turn(reply: str) -> bool:
    """Whether a reply contains a turn separator from some chat template: a control token, or a role as a heading.

    >>> opens_a_turn('Bees fly.<|im_end|>'), opens_a_turn('### Human: Why?'), opens_a_turn('a < b | c > d')
    (True, True, False)
    """
    return control_tokens.spelled_in(reply) or bool(_HEADING.search(reply))
