"""Word lists that classify texts, and the patterns that find their terms.

Terms are separated by commas and written as `plain` returns them: in lower case, without accents. As part of a
word, `*` stands for any letters; on its own, for any word. A term matches only whole words, except in scripts that have
no spaces or join articles to words, where it matches anywhere. After a hyphen, words for styles or wishes do not match
("non-technical"), but words for private matters do ("ex-Muslim").
"""

import functools
import re
import tomllib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhi_jax.io.files import digest

_FOLDER = Path(__file__).parent
# Scripts without spaces, and scripts that join articles to words.
_UNSPACED = re.compile('[\u0590-\u08ff\u3000-\u9fff\uac00-\ud7af\u1100-\u11ff]')


def plain(text: str) -> str:
    """Convert text to lower case with straight quotes, and remove accents and invisible marks.

    >>> plain('“Déjà\u200b vu”, Größe')
    '"deja vu", grosse'
    """
    text = unicodedata.normalize('NFKD', text).casefold().translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return ''.join(c for c in text if unicodedata.category(c) not in ('Mn', 'Cf'))


def lexicon(name: str) -> dict[str, Any]:
    """Return the content of NAME.toml in this folder."""
    return tomllib.loads((_FOLDER / f'{name}.toml').read_text(encoding='utf-8'))


@functools.cache
def lexicons_digest() -> str:
    """Return a digest of all word lists."""
    return digest([lexicon(path.stem) for path in sorted(_FOLDER.glob('*.toml'))])


def terms(words: str) -> list[str]:
    """Split a comma-separated list into its terms."""
    return [' '.join(term.split()) for term in words.split(',')]


def pattern(words: Iterable[str], *, after_hyphens: bool = False) -> str:
    """Return a regular expression that finds any of the terms in text returned by `plain`.

    Args:
      after_hyphens: whether a term may also match after a hyphen, as the second or later part of a compound.

    >>> re.findall(pattern(['short*', 'two * sentences', '短']), 'shorter, in two plain sentences; foreshorten 短く')
    ['shorter', 'two plain sentences', '短']
    """
    spaced, anywhere = [], []
    for term in map(plain, words):
        expression = re.escape(term).replace(r'\ \*', r'\ \w+').replace(r'\*', r'\w*')
        (anywhere if _UNSPACED.search(term) else spaced).append(expression)
    before = r'\w' if after_hyphens else r'[\w-]'
    bounded = [rf'(?<!{before})(?:{"|".join(spaced)})(?!\w)'] if spaced else []
    return '|'.join(bounded + anywhere)
