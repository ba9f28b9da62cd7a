"""Decides whether a remark or claim states a wish that lasts: one that also holds for the next, unrelated request.

"Shorter, please" lasts; "make the hero older" does not. A wish lasts if it names a way of answering, such as a length,
a layout, a language or a tone, but no topic. The words for ways of answering come from `data_pipelines/text/styles.py`
and from the section `ways` of `data_pipelines/text/lexicons/lasting.toml`. The section `idle` of that file lists words
that name no topic. Every other content word counts as a topic, so a wish in unlisted words is assumed not to last.
Because a persona is read with every later request, keeping a wish that does not last costs more than losing one that
does.
"""

import functools
import re

from data_pipelines.text.lexicons import lexicon, pattern, plain, terms
from data_pipelines.text.styles import content_words, polar_stems, styles, without_styles

OTHER_WORDS = 4  # content words allowed in a remark besides its lasting wish; more suggest a task or pasted text

_LISTS = lexicon('lasting')
_WAYS = {way: re.compile(pattern(terms(words))) for way, words in _LISTS['ways'].items()}
_IDLE = re.compile(pattern(terms(','.join(_LISTS['idle'].values()))))
_CLAUSE_ENDS = re.compile(r'[.!?;:,\n。！？，；：、]+|\b(?:and|but|und|aber|et|mais|y|pero|и|но)\b')


def lasts(text: str, other_words: int = 0) -> bool:
    """Whether at least one clause states a wish that lasts, and the other clauses contain few content words.

    Args:
      other_words: maximum number of content words in the other clauses.

    >>> lasts('Shorter, please.'), lasts('再简短'), lasts('Make the hero older.'), lasts('Try again.')
    (True, True, False, False)
    >>> lasts('Shorter, please. I asked about bees.'), lasts('Shorter, please. I asked about bees.', OTHER_WORDS)
    (False, True)
    """
    clauses = [_clause(clause) for clause in _CLAUSE_ENDS.split(plain(text)) if re.search(r'\w', clause)]
    topics = [topic for names_a_way, topic in clauses if topic or not names_a_way]
    return len(topics) < len(clauses) and sum(topics) <= other_words


def _clause(clause: str) -> tuple[bool, int]:
    """Return whether a clause names a way of answering, and how many other content words it contains."""
    rest = without_styles(clause)
    for words in _WAYS.values():
        rest = words.sub(' ', rest)
    return rest != clause, len(content_words(_IDLE.sub(' ', rest)))


@functools.lru_cache(2**12)
def ways(text: str) -> frozenset[str]:
    """Return the ways of answering that a text names, as keys of `ways` in lasting.toml. Matters of style are left out.

    >>> sorted(ways('The full code in Python.'))
    ['form', 'programming']
    """
    words = plain(text)
    return frozenset(way for way, pattern in _WAYS.items() if pattern.search(words))


def same_ways(text: str, quote: str) -> bool:
    """Whether a claim asks only for ways of answering that its remark also asks for.

    The remark must take the same side as the claim on every matter of style in the claim. It must also name every other
    way of answering that the claim names. A word that both contain must be negated in both or in neither.

    >>> same_ways('I like full code.', 'Full code, not snippets!'), same_ways('I like snippets.', 'No snippets!')
    (True, False)
    """
    of_claim, of_quote = polar_stems(text), polar_stems(quote)
    return (
        styles(text).items() <= styles(quote).items()
        and ways(text) <= ways(quote)
        and all(of_claim[stem] == of_quote[stem] for stem in of_claim.keys() & of_quote.keys())
    )
