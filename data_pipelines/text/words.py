"""Splits text in any script into words."""

import re
from collections.abc import Iterator

_UNSPACED = '\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff'
UNSPACED_CHARACTER = re.compile(f'[{_UNSPACED}]')  # Chinese and Japanese have no spaces
_WORD = re.compile(rf'[^\W{_UNSPACED}]+|[{_UNSPACED}]')


def words(text: str) -> Iterator[str]:
    """Yield the words of a text in lower case; each Chinese or Japanese character counts as a word.

    >>> list(words('Say "hello" in 日本語'))
    ['say', 'hello', 'in', '日', '本', '語']
    """
    return (match[0] for match in _WORD.finditer(text.lower()))
