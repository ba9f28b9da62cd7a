"""Which conversations open nearly alike: MinHash with locality-sensitive hashing, a few numbers a conversation.

Two openings that share a band are about as similar as the threshold, or more; that much needs no index in memory.
"""

import re
from hashlib import blake2b

from datasketch import MinHash, MinHashLSH

PERMUTATIONS = 64
SHINGLE = 3  # words
OPENING = 60  # words of the first message that count as its opening
_BLANK = MinHash(PERMUTATIONS, seed=0)


def banding(similarity: float) -> tuple[int, int]:
    """How many bands, of how many of a sketch's numbers each, find openings of such a Jaccard similarity best."""
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    return index.b, index.r


def shingles(opening: str) -> set[str]:
    """Every three words in a row."""
    words = re.findall(r'\w+', opening.lower())[:OPENING]
    return {' '.join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def bands(opening: str, count: int, width: int) -> list[int]:
    """The bands of an opening, each one number of 64 bits that also says which band it is."""
    sketch = _BLANK.copy()
    sketch.update_batch([shingle.encode() for shingle in shingles(opening)])
    numbers = sketch.hashvalues.astype('<u4')
    return [
        int.from_bytes(blake2b(bytes([at]) + numbers[at * width : (at + 1) * width].tobytes(), digest_size=8).digest())
        for at in range(count)
    ]
