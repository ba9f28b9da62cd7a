"""Which conversations open nearly alike: MinHash with locality-sensitive hashing, a few numbers a conversation.

Two openings that share a band are about as similar as the threshold, or more; that much needs no index in memory.
"""

import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice

from datasketch import MinHash, MinHashLSH

PERMUTATIONS = 64
SHINGLE, OF_CHARACTERS = 3, 5  # words; each character of kana and Han, which have no spaces, is one
OPENING = 60  # words of the first message that count as its opening
_BLANK = MinHash(PERMUTATIONS, seed=0)
_UNSPACED = '\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff'
_CHARACTER, _WORD = re.compile(f'[{_UNSPACED}]'), re.compile(rf'[^\W{_UNSPACED}]+|[{_UNSPACED}]')


def banding(similarity: float) -> tuple[int, int]:
    """How many bands, of how many of a sketch's numbers each, find openings of such a Jaccard similarity best."""
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    return index.b, index.r


def words(text: str) -> Iterator[str]:
    """The words of a text, in lower case; each character of Chinese and Japanese is one."""
    return (found[0] for found in _WORD.finditer(text.lower()))


def shingles(opening: str) -> set[str]:
    """Every three words in a row; of Chinese and Japanese, which have no spaces, every five characters.

    >>> sorted(shingles('Say "hello" in 日本語 now'))
    ['hello in 日', 'in 日 本', 'say hello in', '日 本 語 now', '本 語 now']
    """
    said = list(islice(words(opening), OPENING))
    firsts = said[: max(1, len(said) - SHINGLE + 1)] or ['']
    return {
        ' '.join(said[at : at + (SHINGLE if first.isascii() or not _CHARACTER.match(first) else OF_CHARACTERS)])
        for at, first in enumerate(firsts)
    }


def bands(opening: str, count: int, width: int) -> list[int]:
    """The bands of an opening, each one number of 64 bits that also says which band it is."""
    sketch = _BLANK.copy()
    sketch.update_batch([shingle.encode() for shingle in shingles(opening)])
    numbers = sketch.hashvalues.astype('<u4')
    return [
        int.from_bytes(blake2b(bytes([at]) + numbers[at * width : (at + 1) * width].tobytes(), digest_size=8).digest())
        for at in range(count)
    ]
