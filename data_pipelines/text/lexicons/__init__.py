"""Lists of words by which texts are told apart, and how they are found.

Terms are joined by commas and written in lower case without accents, as `plain` makes texts. In a term `*` stands for
any ending, and alone for any word. A term is found as whole words, in scripts that have no spaces anywhere. After a
hyphen a word of style or of a wish is none ("non-technical"), while a private matter stays one ("ex-Muslim").
"""

import functools
import re
import tomllib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhi_jax.io.files import digest, file_digest

_FOLDER = Path(__file__).parent
_UNSPACED = re.compile('[\u0590-\u08ff\u3000-\u9fff\uac00-\ud7af\u1100-\u11ff]')  # also where articles stick to words


def plain(text: str) -> str:
    """Text in lower case, without accents, marks that do not show, and typographic quotes.

    >>> plain('“Déjà\u200b vu”, Größe')
    '"deja vu", grosse'
    """
    text = unicodedata.normalize('NFKD', text).casefold().translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return ''.join(c for c in text if unicodedata.category(c) not in ('Mn', 'Cf'))


def lexicon(name: str) -> dict[str, Any]:
    """One of the lists beside this file."""
    return tomllib.loads((_FOLDER / f'{name}.toml').read_text(encoding='utf-8'))


@functools.cache
def lexicons_digest() -> str:
    """Identifies the words of all lists."""
    return digest([file_digest(path) for path in sorted(_FOLDER.glob('*.toml'))])


def terms(words: str) -> list[str]:
    return [' '.join(term.split()) for term in words.split(',')]


def pattern(words: Iterable[str], *, after_hyphens: bool = False) -> str:
    """A regular expression, for texts made plain, that finds any of the terms.

    Args:
      after_hyphens: find them as later parts of compounds, too.

    >>> re.findall(pattern(['short*', 'two * sentences', '短']), 'shorter, in two plain sentences; foreshorten 短く')
    ['shorter', 'two plain sentences', '短']
    """
    spaced, anywhere = [], []
    for term in map(plain, words):
        found = re.escape(term).replace(r'\ \*', r'\ \w+').replace(r'\*', r'\w*')
        (anywhere if _UNSPACED.search(term) else spaced).append(found)
    before = r'\w' if after_hyphens else r'[\w-]'
    bounded = [rf'(?<!{before})(?:{"|".join(spaced)})(?!\w)'] if spaced else []
    return '|'.join(bounded + anywhere)
