"""Degenerate replies, by their text alone: those that repeat themselves, and those that open another turn.

Nothing here depends on what users like, so the simulator and the stages that mine preferences can share it.
"""

import re
import zlib

from data_pipelines.text import control_tokens

MIN_DISTINCT_TRIGRAMS = 0.7  # smallest share of distinct word trigrams
MIN_COMPRESSED = 0.15  # smallest compressed share of the bytes; in scripts without spaces a loop may be one word
_HEADING = re.compile(r'^#{2,4} ?(?:Human|Assistant|User|Instruction):', re.MULTILINE)


def words(reply: str) -> list[str]:
    """The words of a reply, in lower case.

    >>> words("1. Don't knead it, fold it!")
    ['1', "don't", 'knead', 'it', 'fold', 'it']
    """
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", reply.lower())


def is_repetitive(reply: str) -> bool:
    """Whether a reply repeats itself: few of its word trigrams are distinct, or its bytes compress well.

    >>> is_repetitive('Bees make honey. ' * 9), is_repetitive('哈' * 99), is_repetitive('Bees make honey in a hive.')
    (True, True, False)
    """
    in_order, data = words(reply), reply.encode('utf-8', 'surrogatepass')
    trigrams = list(zip(in_order, in_order[1:], in_order[2:], strict=False))
    few_distinct = len(set(trigrams)) < MIN_DISTINCT_TRIGRAMS * len(trigrams)
    return few_distinct or len(zlib.compress(data)) < MIN_COMPRESSED * len(data)


def opens_a_turn(reply: str) -> bool:
    """Whether a reply contains what separates turns in some chat template: a control token, or a role as a heading.

    >>> opens_a_turn('Bees fly.<|im_end|>'), opens_a_turn('### Human: Why?'), opens_a_turn('a < b | c > d')
    (True, True, False)
    """
    return control_tokens.spelled_in(reply) or bool(_HEADING.search(reply))
