"""Identifies the language of a text, and the languages in which a reply may be rewritten.

Languages are identified by the package py3langid, which contains its model (langid.py: Lui and Baldwin, ACL 2012).
Language names, in every language, come from CLDR through Babel.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence

from babel import Locale, UnknownLocaleError
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_pipelines.text.openings import plain

MIN_CONFIDENCE = 0.8  # below this, a text's language counts as undecided
_READ = 1000  # characters of a text that are read
_NOT_PROSE = re.compile(r'```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]+>|https?://\S+|\$[^$\n]+\$', re.DOTALL)
_NO_LANGUAGE = 'zxx'  # the identifier's label for numbers, markup and code
_SAME = {'bs': 'hr', 'sr': 'hr', 'ms': 'id', 'nn': 'no'}  # treated as one language: short texts in them look alike

# Words before or after a language's name that ask for that language ("in French"), and words that reverse the wish:
# "not in French" and "why in French?", but not "why not in French?".
_INTO = {'in', 'into', 'to', 'auf', 'ins', 'en', 'em', 'al', 'na', 'po', 'v', 'на', 'по', 'إلى'}
_INTO_AT_ONCE, _AS_SUFFIX = ('用', '成', '为', '為', 'ب'), ('で', 'に', '로')
_NOT = {'not', 'don', 'doesn', 'didn', 'isn', 'won', 'no', 'never', 'stop', 'avoid', 'without', 'instead'}
_NOT |= {
    'nicht',
    'kein',
    'keine',
    'nie',
    'ohne',
    'statt',
    'pas',
    'jamais',
    'sans',
    'non',
    'nunca',
    'sin',
    'senza',
    'mai',
}
_NOT |= {'nao', 'sem', 'niet', 'geen', 'не', 'без'}
_WHY = {'why', 'warum', 'wieso', 'pourquoi', 'porque', 'perche', 'waarom', 'почему', 'зачем'}
_NOT_UNSPACED = re.compile('不|别|別|勿|ない|ません|말고|말아|لا ')
_WHY_UNSPACED = re.compile('为什么|為什麼|为何|なぜ|どうして|왜|لماذا')
_NEGATED_WITHIN = 5  # a negation counts if it is at most this many words before the name
_CLAUSE_ENDS = re.compile(r'[.!?;:,\n。！？；，、؟،]+')
_UNSPACED = re.compile(r'[\u0600-\u06ff\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]')
_ALSO_VERBS = {'polish'}  # names of languages that are also verbs
FEW_WORDS = 3  # a remark with at most this many words asks for any language it names: "French, please"


@functools.cache
def _identifier() -> LanguageIdentifier:
    """Load py3langid, limited to languages with two-letter codes; the others are mostly dialects of these."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
    identifier.set_languages([label for label in identifier.labels if len(label) == 2 or label == _NO_LANGUAGE])
    return identifier


def language(text: str) -> str:
    """Return the language code of a text's prose; '' if the text is too short, mixes languages or has no prose.

    >>> [language(text) for text in ('The bees fly home to their hive.', 'Les abeilles rentrent à la ruche.', 'Ok')]
    ['en', 'fr', '']
    """
    label, _ = _identifier().classify(_NOT_PROSE.sub(' ', text)[:_READ])
    return '' if label in ('und', _NO_LANGUAGE) else _SAME.get(label, label)


def wanted(request: str, reply: str, feedback: str) -> frozenset[str]:
    """Return the languages in which a reply may be rewritten after feedback; an empty set allows every language.

    If the feedback asks for languages, only these are allowed. If the request's language is undecided, every language
    is allowed. Otherwise, the following languages are allowed, unless the feedback rejects them:

    - the languages of the request, the reply and the feedback (the reply and the request may rightly be in different
      languages, for example if the request is a text to translate);
    - the languages that the request or the feedback names.

    >>> sorted(wanted('Why do bees dance?', 'They dance to show their sisters the way.', 'Say that again in French.'))
    ['fr']
    >>> sorted(wanted('Why do bees dance in a hive?', '', 'Das ist mir viel zu lang, bitte kürzer.'))
    ['de', 'en']
    >>> sorted(wanted('Warum tanzen die Bienen?', 'To show their sisters the way.', 'Why is it in English?'))
    ['de']
    """
    spoken = {language(text) for text in (request, reply, feedback)} - {''}
    named, asked, rejected = _named(feedback, spoken)
    if asked:
        return asked
    if not language(request):
        return frozenset()
    return (spoken | named | _named(request, spoken)[0]) - rejected


def _named(text: str, spoken: Iterable[str]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return three sets of languages: those that a text names, those that it asks for, and those that it rejects.

    A language is recognized by its English name, its own name (such as 'Deutsch') and its names in the `spoken`
    languages.
    """
    if len(text) > _READ:  # wishes come before or after pasted text
        text = f'{text[: _READ // 2]}\n{text[-_READ // 2 :]}'
    text = plain(text)
    mentions: dict[str, set[tuple[bool, bool]]] = {}  # keyed by language; see `_mentions`
    clauses = [(clause, re.findall(r'[^\W\d_]+', clause)) for clause in _CLAUSE_ENDS.split(text)]
    few = sum(len(words) for _, words in clauses) <= FEW_WORDS
    for name, code in {pair for locale in ('native', 'en', *spoken) for pair in _names(locale)}:
        for clause, words in clauses:
            for mention in _mentions(name, clause, words, few):
                mentions.setdefault(code, set()).add(mention)
    asked = {code for code, kinds in mentions.items() if (True, False) in kinds}
    rejected = {code for code, kinds in mentions.items() if (True, True) in kinds}
    return frozenset(mentions), frozenset(asked), frozenset(rejected - asked)


def _mentions(name: str, clause: str, words: Sequence[str], few: bool) -> Iterator[tuple[bool, bool]]:
    """Yield two flags for each mention of a language in a clause.

    They say whether the mention is about text in that language, and whether it is negated. For example, "not in French"
    is about text in French and is negated.
    """
    if _UNSPACED.search(name):
        for match in re.finditer(re.escape(name), clause):
            before, after = clause[: match.start()], clause[match.end() :]
            has_not, has_why = (bool(each.search(f'{before}|{after}')) for each in (_NOT_UNSPACED, _WHY_UNSPACED))
            yield before.endswith(_INTO_AT_ONCE) or after.startswith(_AS_SUFFIX), has_not != has_why
        return
    for position, word in enumerate(words):
        if word == name or (name.endswith('-') and word.startswith(name[:-1])):
            before = words[max(0, position - _NEGATED_WITHIN) : position]
            into = bool({*before[-1:]} & (_INTO | _NOT)) or (few and word not in _ALSO_VERBS)
            yield into, _NOT.isdisjoint(before) == (not _WHY.isdisjoint(before))


@functools.cache
def _names(locale: str) -> list[tuple[str, str]]:
    """Return the names and codes of all identifiable languages.

    The names are in the language `locale`. If `locale` is 'native', each language is named in itself. Inflected names
    have '-' in place of their ending.
    """
    labels = [label for label in _identifier().labels if label != _NO_LANGUAGE and len(label) == 2]
    names = []
    for code in labels:
        name = _name_in(code, code if locale == 'native' else locale)
        if not name or ' ' in name:
            continue
        name, code = plain(name), _SAME.get(code, code)
        names.append((re.sub(r'(?<=sk)[iy]$|(?<=к)ии$', '-', name), code))
        if name.endswith(('语', '語')):  # such as 英文
            names.append((name[:-1] + '文', code))
    return names


def _name_in(code: str, locale: str) -> str:
    """Return the name of a language in another language; '' if CLDR does not have the name."""
    try:
        return Locale.parse(locale).languages.get(code, '')
    except UnknownLocaleError:
        return ''
