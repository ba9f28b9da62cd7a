"""Which language a text is in, and which ones a rewrite of a reply may be in.

Languages are told apart by py3langid (langid.py, Lui and Baldwin, ACL 2012), whose model is in its package; what they
are called in which language is CLDR's word, through Babel.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence

from babel import Locale, UnknownLocaleError
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_pipelines.text.openings import plain

MIN_CONFIDENCE = 0.8  # below it a text counts as undecided
_LOOKED_AT = 1000  # characters
_NOT_PROSE = re.compile(r'```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]+>|https?://\S+|\$[^$\n]+\$', re.DOTALL)
_NO_LANGUAGE = 'zxx'  # the identifier's label of numbers, markup and code
_SAME = {'bs': 'hr', 'sr': 'hr', 'ms': 'id', 'nn': 'no'}  # one language here: short texts do not tell them apart

# What comes before a language's name where it is asked for ("in French"), or after it; and what turns that round: "not
# in French" and "why in French?", but not "why not in French?".
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
_TURNED_WITHIN = 5  # words before the name
_CLAUSE_ENDS = re.compile(r'[.!?;:,\n。！？；，、؟،]+')
_UNSPACED = re.compile(r'[\u0600-\u06ff\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]')
_ALSO_VERBS = {'polish'}
FEW_WORDS = 3  # a remark no longer than this that names a language asks for it: "French, please"


@functools.cache
def _identifier() -> LanguageIdentifier:
    """Knows the languages with codes of two letters: the others are mostly dialects of these."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
    identifier.set_languages([label for label in identifier.labels if len(label) == 2 or label == _NO_LANGUAGE])
    return identifier


def language(text: str) -> str:
    """The code of the language that a text's prose is in; '' if it is too short, too mixed or no prose at all.

    >>> [language(text) for text in ('The bees fly home to their hive.', 'Les abeilles rentrent à la ruche.', 'Ok')]
    ['en', 'fr', '']
    """
    label, _ = _identifier().classify(_NOT_PROSE.sub(' ', text)[:_LOOKED_AT])
    return '' if label in ('und', _NO_LANGUAGE) else _SAME.get(label, label)


def wanted(request: str, reply: str, feedback: str) -> frozenset[str]:
    """The languages in which a request may be answered once more, after feedback on a reply; empty for any.

    What the feedback asks for, if it does. Or else the request's own and those that request or feedback name; that of
    the reply, unless the user says that it was wrong (a request may be a text to translate, as agreed before); and that
    of the feedback. Never one that the feedback turns down.

    >>> sorted(wanted('Why do bees dance?', 'They dance to show their sisters the way.', 'Say that again in French.'))
    ['fr']
    >>> sorted(wanted('Why do bees dance in a hive?', '', 'Das ist mir viel zu lang, bitte kürzer.'))
    ['de', 'en']
    >>> sorted(wanted('Warum tanzen die Bienen?', 'To show their sisters the way.', 'Why is it in English?'))
    ['de']
    """
    spoken = {language(text) for text in (request, reply, feedback)} - {''}
    named, asked, turned_down = _named(feedback, spoken)
    if asked:
        return asked
    if not language(request):
        return frozenset()
    return (spoken | named | _named(request, spoken)[0]) - turned_down


def _named(text: str, spoken: Iterable[str]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The languages that a text names; of these, those that it asks for, and those that it turns down.

    Their names are the English ones, those in the languages `spoken`, and what each calls itself.
    """
    if len(text) > _LOOKED_AT:  # what is asked for stands before what is pasted, or after it
        text = f'{text[: _LOOKED_AT // 2]}\n{text[-_LOOKED_AT // 2 :]}'
    text, named = plain(text), {}
    clauses = [(clause, re.findall(r'[^\W\d_]+', clause)) for clause in _CLAUSE_ENDS.split(text)]
    few = sum(len(words) for _, words in clauses) <= FEW_WORDS
    for name, code in {pair for locale in ('own', 'en', *spoken) for pair in _names(locale)}:
        for clause, words in clauses:
            for is_asked, is_turned_down in _told(name, clause, words, few):
                named.setdefault(code, set()).add((is_asked, is_turned_down))
    asked = {code for code, told in named.items() if (True, False) in told}
    turned_down = {code for code, told in named.items() if (True, True) in told}
    return frozenset(named), frozenset(asked), frozenset(turned_down - asked)


def _told(name: str, clause: str, words: Sequence[str], few: bool) -> Iterator[tuple[bool, bool]]:
    """Of every time that a clause names a language: whether a text is to be in it, and whether that is turned round."""
    if _UNSPACED.search(name):
        for found in re.finditer(re.escape(name), clause):
            before, after = clause[: found.start()], clause[found.end() :]
            said_not, said_why = (bool(words.search(f'{before}|{after}')) for words in (_NOT_UNSPACED, _WHY_UNSPACED))
            yield before.endswith(_INTO_AT_ONCE) or after.startswith(_AS_SUFFIX), said_not != said_why
        return
    for place, word in enumerate(words):
        if word == name or (name.endswith('-') and word.startswith(name[:-1])):
            before = words[max(0, place - _TURNED_WITHIN) : place]
            into = bool({*before[-1:]} & (_INTO | _NOT)) or (few and word not in _ALSO_VERBS)
            yield into, _NOT.isdisjoint(before) == (not _WHY.isdisjoint(before))


@functools.cache
def _names(locale: str) -> list[tuple[str, str]]:
    """(name, code) of the languages that can be told apart, as they are called in one of them, or each in itself.

    Names that are inflected end in '-' in place of their ending.
    """
    labels = [label for label in _identifier().labels if label != _NO_LANGUAGE and len(label) == 2]
    called = [(code, _called(code, code if locale == 'own' else locale)) for code in labels]
    names = []
    for code, name in called:
        if not name or ' ' in name:
            continue
        name, code = plain(name), _SAME.get(code, code)
        names.append((re.sub(r'(?<=sk)[iy]$|(?<=к)ии$', '-', name), code))
        if name.endswith(('语', '語')):  # as in 英文
            names.append((name[:-1] + '文', code))
    return names


def _called(code: str, locale: str) -> str:
    try:
        return Locale.parse(locale).languages.get(code, '')
    except UnknownLocaleError:
        return ''
