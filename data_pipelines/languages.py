"""Which language a text is in, and which ones a rewrite of a reply may be in.

Languages are told apart by py3langid (langid.py, Lui and Baldwin, ACL 2012), whose model is in its package; what they
are called in which language is CLDR's word, through Babel.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable

from babel import Locale, UnknownLocaleError
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_pipelines.openings import plain

MIN_CONFIDENCE = 0.8  # below it a text counts as undecided
_LOOKED_AT = 1000  # characters
_NOT_PROSE = re.compile(r'```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]+>|https?://\S+|\$[^$\n]+\$', re.DOTALL)
_NO_LANGUAGE = 'zxx'  # the identifier's label of numbers, markup and code
_SAME = {'bs': 'hr', 'sr': 'hr', 'ms': 'id', 'nn': 'no'}  # one language here: short texts do not tell them apart

# What comes before a language's name where it is asked for ("in French"), or after it; and what turns that round.
_INTO = {'in', 'into', 'to', 'auf', 'ins', 'en', 'em', 'al', 'na', 'po', 'v', 'на', 'по', 'إلى'}
_INTO_AT_ONCE, _AS_SUFFIX = ('用', '成', '为', '為', 'ب'), ('で', 'に', '로')
_NOT = {'not', 'nicht', 'pas', 'no', 'non', 'nao', 'nie', 'не'}
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
    the reply, which the user does not say was wrong (a request may be a text to translate, as agreed before); and that
    of the feedback.

    >>> sorted(wanted('Why do bees dance?', 'They dance to show their sisters the way.', 'Say that again in French.'))
    ['fr']
    >>> sorted(wanted('Why do bees dance in a hive?', '', 'Das ist mir viel zu lang, bitte kürzer.'))
    ['de', 'en']
    """
    spoken = {language(text) for text in (request, reply, feedback)} - {''}
    named = _named(feedback, spoken)
    if asked := {code for code, is_asked in named.items() if is_asked}:
        return frozenset(asked)
    if not language(request):
        return frozenset()
    return frozenset(spoken | named.keys() | _named(request, spoken).keys())


def _named(text: str, spoken: Iterable[str]) -> dict[str, bool]:
    """The languages that a text names, and whether it asks for them.

    Their names are the English ones, those in the languages `spoken`, and what each calls itself.
    """
    if len(text) > _LOOKED_AT:  # what is asked for stands before what is pasted, or after it
        text = f'{text[: _LOOKED_AT // 2]}\n{text[-_LOOKED_AT // 2 :]}'
    text, named = plain(text), Counter()
    said = re.findall(r'[^\W\d_]+', text)
    for name, code in {pair for locale in ('own', 'en', *spoken) for pair in _names(locale)}:
        if _UNSPACED.search(name):
            for found in re.finditer(re.escape(name), text):
                before, after = text[: found.start()], text[found.end() :]
                named[code] |= before.endswith(_INTO_AT_ONCE) or after.startswith(_AS_SUFFIX)
            continue
        for place, word in enumerate(said):
            if word == name or (name.endswith('-') and word.startswith(name[:-1])):
                *_, two_before, before = ('', '', *said[:place])
                if two_before not in _NOT:
                    named[code] |= before in _INTO or (len(said) <= FEW_WORDS and word not in _ALSO_VERBS)
    return dict(named)


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
