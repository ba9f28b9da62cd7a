"""Finds near-duplicate openings using MinHash and locality-sensitive hashing.

The MinHash sketch of an opening is divided into bands. If two openings share a band, their similarity is probably near
the threshold or above it. Comparing bands needs no index in memory, and only a few numbers per conversation are stored.
"""

from hashlib import blake2b
from itertools import islice

from datasketch import MinHash, MinHashLSH

from data_pipelines.text.words import UNSPACED_CHARACTER, words

PERMUTATIONS = 64
# In words. Each kana or Han character counts as a word, because these scripts have no spaces.
SHINGLE, CHARACTER_SHINGLE = 3, 5
OPENING = 60  # words at the beginning of the first message that count as its opening
_BLANK = MinHash(PERMUTATIONS, seed=0)


def banding(similarity: float) -> tuple[int, int]:
    """Return the number of bands and the number of sketch values per band that suit a similarity threshold.

    With these numbers, sharing a band is the best test of whether two openings have at least this Jaccard similarity.
    """
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    return index.b, index.r


def shingles(opening: str) -> set[str]:
    """Return all runs of three consecutive words in an opening.

    Each Chinese or Japanese character counts as a word. A run that starts with such a character has five words,
    or fewer at the end of the opening.

    >>> sorted(shingles('Say "hello" in 日本語 now'))
    ['hello in 日', 'in 日 本', 'say hello in', '日 本 語 now', '本 語 now']
    """
    tokens = list(islice(words(opening), OPENING))
    firsts = tokens[: max(1, len(tokens) - SHINGLE + 1)] or ['']
    return {
        ' '.join(
            tokens[i : i + (SHINGLE if first.isascii() or not UNSPACED_CHARACTER.match(first) else CHARACTER_SHINGLE)]
        )
        for i, first in enumerate(firsts)
    }


def bands(opening: str, count: int, width: int) -> list[int]:
    """Return the bands of an opening. Each band is a 64-bit hash of its index and its sketch values.

    Args:
      opening: the text of the first message.
      count: the number of bands.
      width: the number of sketch values in each band.
    """
    sketch = _BLANK.copy()
    sketch.update_batch([shingle.encode() for shingle in shingles(opening)])
    numbers = sketch.hashvalues.astype('<u4')
    return [
        int.from_bytes(blake2b(bytes([i]) + numbers[i * width : (i + 1) * width].tobytes(), digest_size=8).digest())
        for i in range(count)
    ]
