"""What makes a reply degenerate, by its text alone: that it goes round in circles, or opens a turn.

Nothing here knows what users like, so that the simulator and the stages that mine preferences may share it.
"""

import re
import zlib

from data_pipelines.text import control_tokens

MIN_DISTINCT_TRIGRAMS = 0.7  # of a reply's three words in a row
MIN_COMPRESSED = 0.15  # of its bytes: in scripts without spaces a loop may be one word
_HEADING = re.compile(r'^#{2,4} ?(?:Human|Assistant|User|Instruction):', re.MULTILINE)


def words(reply: str) -> list[str]:
    """Its words, in lower case.

    >>> words("1. Don't knead it, fold it!")
    ['1', "don't", 'knead', 'it', 'fold', 'it']
    """
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", reply.lower())


def is_repetitive(reply: str) -> bool:
    """Whether a reply goes round in circles: few of its three words in a row differ, or its bytes say little.

    >>> is_repetitive('Bees make honey. ' * 9), is_repetitive('哈' * 99), is_repetitive('Bees make honey in a hive.')
    (True, True, False)
    """
    said, data = words(reply), reply.encode('utf-8', 'surrogatepass')
    trigrams = list(zip(said, said[1:], said[2:], strict=False))
    few = len(set(trigrams)) < MIN_DISTINCT_TRIGRAMS * len(trigrams)
    return few or len(zlib.compress(data)) < MIN_COMPRESSED * len(data)


def opens_a_turn(reply: str) -> bool:
    """Whether a reply goes on to what separates turns in some chat template: a control token, or a heading of a role.

    >>> opens_a_turn('Bees fly.<|im_end|>'), opens_a_turn('### Human: Why?'), opens_a_turn('a < b | c > d')
    (True, True, False)
    """
    return control_tokens.spelled_in(reply) or bool(_HEADING.search(reply))
