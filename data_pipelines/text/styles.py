"""Finds the side that a remark or claim takes in each matter of style, such as the length or layout of answers.

Two claims that take different sides of the same matter contradict each other. A remark can support a claim only if it
takes every side that the claim takes. The method is meant for short sentences and works best in English. The words for
each side are in `data_pipelines/text/lexicons/styles.toml`.

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
_NEGATION, _UNSPACED, _NO_NEGATION = (
    pattern(terms(_WORDS[name])) for name in ('negations', 'unspaced_negations', 'no_negations')
)
_CLAUSE = 300  # characters before a word that are searched for a negation
# At most three words, or four characters that do not begin another wish, come between a negation and the negated word.
_BEFORE = re.compile(rf'(?:(?:{_NEGATION})(?: [\w\'"]+){{0,3}}|(?:{_UNSPACED})[^\W要请而]{{0,4}}) ?$')
_IDLE = re.compile(rf"{_NO_NEGATION}|(?:\bnot|n't|\bnever) mind\b[^.!?;:,\n]*")
_IN_LANGUAGE = r'(?:\b(?:in|into|to|auf|ins|en|em|an|use|speak|write|translate|на|по)[ -]|用|以|说|成)(?:{})'
_EMPTY = frozenset(terms(_WORDS['empty']))
_CONTENT = re.compile(r'[^\W\d_]{2,}')
_STEMMER = snowballstemmer.stemmer('english')


@functools.cache
def _patterns() -> list[tuple[str, str, str, re.Pattern]]:
    """Return a list of (matter, side, opposite side or '', pattern that finds words for the side)."""
    patterns = []
    for matter, sides in _WORDS['matters'].items():
        one, other = (*sides, 'without')[:2]
        for side, opposite in ((one, other), (other, one)):
            if side in sides:
                patterns.append((matter, side, opposite, re.compile(pattern(terms(sides[side])))))
    for language, names in _WORDS['languages'].items():
        words = re.compile(_IN_LANGUAGE.format(pattern(terms(names))))
        # Each language is also its own matter, because a user who rejects German has not said which language they want.
        patterns += [(language, 'with', 'without', words), ('language', language, '', words)]
    return patterns


@functools.lru_cache(2**12)
def _styles(text: str) -> tuple[tuple[str, str], ...]:
    text = _simplified(text)
    taken: dict[str, list[tuple[int, int, str]]] = {}  # keyed by matter: end and length of each match, and the side
    for matter, side, other, words in _patterns():
        for match in words.finditer(text):
            if side_taken := other if _negated(text, match) else side:
                taken.setdefault(matter, []).append((match.end(), len(match[0]), side_taken))
    # If a text takes both sides, the last side counts: "Too short. I like long answers."
    return tuple((matter, max(sides)[-1]) for matter, sides in taken.items())


def _simplified(text: str) -> str:
    """Apply `plain`, and remove phrases that only look negative ("not enough") or say what the user does not mind."""
    return _IDLE.sub('', plain(text)).replace('no longer', 'not')


def _negated(text: str, match: re.Match) -> bool:
    """Whether a match is negated in its clause; "not detailed enough" does not count, because it asks for detail."""
    clause = re.split(r'[.!?;:,\n]', text[max(0, match.start() - _CLAUSE) : match.start()])[-1]
    return bool(_BEFORE.search(clause)) and not re.match(r' (?:enough|genug)\b', text[match.end() :])


def without_styles(text: str) -> str:
    """Replace each word or phrase about a matter of style with a space, in text returned by `plain`."""
    for *_, words in _patterns():
        text = words.sub(' ', text)
    return text


def styles(text: str) -> dict[str, str]:
    """Return the side that a text takes in each matter of style that it mentions."""
    return dict(_styles(text))


@functools.lru_cache(2**12)
def polar_stems(text: str) -> dict[str, bool]:
    """Map the stem of each content word in a text to whether the word follows a negation.

    >>> polar_stems('I like answers that mention history, not dates.')
    {'histori': False, 'date': True}
    """
    text = _simplified(text)
    words = [(_STEMMER.stemWord(match[0]), match) for match in _CONTENT.finditer(text)]
    return {stem: _negated(text, match) for stem, match in words if stem not in _EMPTY}


@functools.lru_cache(2**12)
def stems(text: str) -> frozenset[str]:
    """Return the stems of a text's content words.

    >>> stems('I like answers that mention their history.')
    frozenset({'histori'})
    """
    # Unlike `polar_stems`, this takes less than a second on a long conversation, because it ignores negation.
    return frozenset(_STEMMER.stemWords(list(set(_CONTENT.findall(_simplified(text)))))) - _EMPTY


def content_words(text: str) -> list[str]:
    """Return the content words of text returned by `plain`; a run of Chinese characters is one word.

    >>> content_words('please sort the 3 bees')
    ['sort', 'bees']
    """
    return [word for word in _CONTENT.findall(text) if _STEMMER.stemWord(word) not in _EMPTY]
