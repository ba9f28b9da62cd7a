"""Lists of words that classify texts, and the patterns that find them.

Terms are joined by commas and written in lower case without accents, the form that `plain` returns. In a term, `*`
stands for any ending, or alone for any word. A term matches whole words, or anywhere in scripts without spaces.
After a hyphen, words of style or of wishes do not match ("non-technical"), but private matters do ("ex-Muslim").
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
# Scripts without spaces, and those whose articles are joined to words.
_UNSPACED = re.compile('[\u0590-\u08ff\u3000-\u9fff\uac00-\ud7af\u1100-\u11ff]')


def plain(text: str) -> str:
    """Text in lower case, without accents, invisible marks and typographic quotes.

    >>> plain('“Déjà\u200b vu”, Größe')
    '"deja vu", grosse'
    """
    text = unicodedata.normalize('NFKD', text).casefold().translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return ''.join(c for c in text if unicodedata.category(c) not in ('Mn', 'Cf'))


def lexicon(name: str) -> dict[str, Any]:
    """The content of NAME.toml beside this file."""
    return tomllib.loads((_FOLDER / f'{name}.toml').read_text(encoding='utf-8'))


@functools.cache
def lexicons_digest() -> str:
    """Identifies the words of all lists."""
    return digest([file_digest(path) for path in sorted(_FOLDER.glob('*.toml'))])


def terms(words: str) -> list[str]:
    """The terms of a list that commas join."""
    return [' '.join(term.split()) for term in words.split(',')]


def pattern(words: Iterable[str], *, after_hyphens: bool = False) -> str:
    """A regular expression that finds any of the terms in text that `plain` returned.

    Args:
      after_hyphens: also find terms after a hyphen, as later parts of compounds.

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
