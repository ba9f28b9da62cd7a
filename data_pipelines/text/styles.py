"""What a remark or a claim says about the style of answers: which matter, and which side of it.

Two claims that take different sides cannot both hold, and a claim that takes a side which its remark does not take has
no support. Made for short sentences, in English above all; `data_pipelines/text/lexicons/styles.toml` has the words.

>>> styles('This is too long. As a list, please!')
{'length': 'short', 'layout': 'list'}
>>> styles('I do not like lists. Write it in French.')
{'layout': 'prose', 'french': 'with', 'language': 'french'}
>>> styles('Not in German!'), styles('I do not mind long answers.')
({'german': 'without'}, {})
"""

import functools
import re

import snowballstemmer

from data_pipelines.text.lexicons import lexicon, pattern, plain, terms

_WORDS = lexicon('styles')
_NEGATION, _UNSPACED, _NONE = (
    pattern(terms(_WORDS[name])) for name in ('negations', 'unspaced_negations', 'no_negations')
)
# What is negated stands up to three words later, or up to four characters that do not begin a wish of their own.
_BEFORE = re.compile(rf'(?:(?:{_NEGATION})(?: [\w\'"]+){{0,3}}|(?:{_UNSPACED})[^\W要请而]{{0,4}}) ?$')
_IDLE = re.compile(rf"{_NONE}|(?:\bnot|n't|\bnever) mind\b[^.!?;:,\n]*")
_IN_LANGUAGE = r'(?:\b(?:in|into|to|auf|ins|en|em|an|use|speak|write|translate|на|по)[ -]|用|以|说|成)(?:{})'
_EMPTY = frozenset(terms(_WORDS['empty']))
_STEMMER = snowballstemmer.stemmer('english')


@functools.cache
def _patterns() -> list[tuple[str, str, str, re.Pattern]]:
    """(matter, side, the other side or '', words that take the side)"""
    found = []
    for matter, sides in _WORDS['matters'].items():
        one, other = (*sides, 'without')[:2]
        for side, opposite in ((one, other), (other, one)):
            if side in sides:
                found.append((matter, side, opposite, re.compile(pattern(terms(sides[side])))))
    for language, names in _WORDS['languages'].items():
        words = re.compile(_IN_LANGUAGE.format(pattern(terms(names))))
        # Each is a matter of its own, too: who does not want German has not said what they want.
        found += [(language, 'with', 'without', words), ('language', language, '', words)]
    return found


@functools.lru_cache(2**12)
def _styles(text: str) -> tuple[tuple[str, str], ...]:
    said, found = _said(text), {}
    for matter, side, other, words in _patterns():
        for match in words.finditer(said):
            if taken := other if _negated(said, match) else side:
                found.setdefault(matter, []).append((match.end(), len(match[0]), taken))
    # Where a text takes both sides, the last word counts: "Too short. I like long answers."
    return tuple((matter, max(sides)[-1]) for matter, sides in found.items())


def _said(text: str) -> str:
    """The text made plain, less what holds a negation and is none ("not enough"), and what somebody does not mind."""
    return _IDLE.sub('', plain(text)).replace('no longer', 'not')


def _negated(said: str, match: re.Match) -> bool:
    """Whether what was found stands after a negation; "not detailed enough" asks for detail."""
    clause = re.split(r'[.!?;:,\n]', said[: match.start()])[-1]
    return bool(_BEFORE.search(clause)) and not re.match(r' (?:enough|genug)\b', said[match.end() :])


def styles(text: str) -> dict[str, str]:
    """The side that a text takes, of every matter that it speaks of."""
    return dict(_styles(text))


@functools.lru_cache(2**12)
def polar_stems(text: str) -> dict[str, bool]:
    """Stems of the words that tell what a text is about, and whether they stand after a negation.

    >>> polar_stems('I like answers that mention history, not dates.')
    {'histori': False, 'date': True}
    """
    said = _said(text)
    words = [(_STEMMER.stemWord(match[0]), match) for match in re.finditer(r'[^\W\d_]{2,}', said)]
    return {stem: _negated(said, match) for stem, match in words if stem not in _EMPTY}


def stems(text: str) -> set[str]:
    """Stems of the words that tell what a text is about.

    >>> stems('I like answers that mention their history.')
    {'histori'}
    """
    return set(polar_stems(text))
