"""Finds conversations with similar openings, using MinHash and locality-sensitive hashing (LSH).

The opening of a conversation is the first `OPENING` words of its first message. The MinHash sketch of an opening is
divided into bands. If two openings share a band, their similarity is probably near the threshold or above it. Comparing
bands needs no index in memory, and only one hash per band is stored.
"""

from hashlib import blake2b
from itertools import islice

from datasketch import MinHash, MinHashLSH

from data_pipelines.text.words import UNSPACED_CHARACTER, words

PERMUTATIONS = 64
# In words. Each kana or Han character counts as a word, because these scripts have no spaces.
SHINGLE, CHARACTER_SHINGLE = 3, 5
OPENING = 60  # the number of words at the beginning of the first message that are the conversation's opening
_BLANK = MinHash(PERMUTATIONS, seed=0)


def banding(similarity: float) -> tuple[int, int]:
    """Return the number of LSH bands, and the number of MinHash values per band, for a threshold.

    With these numbers, sharing a band is the best test of whether two openings reach the threshold.

    Args:
      similarity: the threshold, a Jaccard similarity.
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
    """Return the LSH bands of an opening, each as a 64-bit hash of the band's index and its MinHash values.

    Args:
      opening: the text of the first message, of which only the first `OPENING` words count.
      count: the number of bands.
      width: the number of MinHash values in each band.
    """
    sketch = _BLANK.copy()
    sketch.update_batch([shingle.encode() for shingle in shingles(opening)])
    numbers = sketch.hashvalues.astype('<u4')
    return [
        int.from_bytes(blake2b(bytes([i]) + numbers[i * width : (i + 1) * width].tobytes(), digest_size=8).digest())
        for i in range(count)
    ]
