"""What is not kept: conversations that are flagged, too long, jailbreaks or refusals; of the others, people's details.

All of it looks at one conversation, and costs little: a million must not take hours.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import phonenumbers
from stdnum import iban, luhn

from data_pipelines.text.openings import is_refusal

_LOOKED_AT = 4000  # characters of a turn, where patterns are looked for
_JAILBREAK = re.compile(
    r'\bdo anything now\b'
    r'|\bjail ?broken\b'
    r'|\bdeveloper mode (?:enabled|output|response)'
    r'|\b(?:ignore|disregard|forget) (?:all |any |the |your )*(?:previous|prior|above|earlier)'
    r' (?:instruction|rule|prompt)'
    r'|\b(?:no|without(?: any)?|free of(?: all)?) (?:ethical|moral|content)(?: or \w+)?'
    r' (?:restriction|guideline|filter|limit)'
    r'|\b(?:unfiltered|uncensored|amoral)\b[^.\n]{0,40}\b(?:ai|chat ?bot|assistant|model)\b',
    re.IGNORECASE,
)
# Text without spaces touches what it tells: bounds are of ASCII, and e-mail addresses have letters of Latin, Greek and
# Cyrillic only. 64: RFC 5321; unbounded, long words take hours.
_EMAIL = re.compile(r'[\w.+À-ӿ-]{1,64}@(?:[\wÀ-ӿ-]+\.)+[A-Za-z]{2,}\b', re.ASCII)
_CARD = re.compile(r'(?<![\w./-])(?:3[47]|4\d|5[1-5]|2[2-7]|6[05])(?:[ -]?\d){11,17}(?!\w|\.\w)', re.ASCII)
_IBAN = re.compile(r'\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b', re.ASCII | re.IGNORECASE)
_PHONE = re.compile(r'(?<!\w)\(\d{3}\) ?\d{3}-\d{4}(?![\w-])', re.ASCII)  # of North America, which no code looks like
_IPV4 = re.compile(  # of the same form as a version: one that is called so is found with its name, and is no address
    r'(?:(?:versi|верси|版|バージョン|버전)\S{0,4}\W{0,4})?'
    r'(?<![\w.])(?<![=<>~!]=)(?<![a-z]/)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w|-[a-z])',
    re.ASCII | re.IGNORECASE,
)
_IPV6 = re.compile(  # 2000::/3, as all that are given out; others look like code
    r'(?<![\w.:])[23][\da-f]{3}(?::[\da-f]{0,4}){2,7}(?!\w|[.:]\w)', re.ASCII | re.IGNORECASE
)
_WORD = re.compile(r'\w+')


def _is_public(address: str) -> bool:
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def _is_card(number: str) -> bool:
    digits = re.sub(r'\D', '', number)
    return len(digits) >= 13 and luhn.is_valid(digits)


def _is_telephone(number: str) -> bool:
    return phonenumbers.is_valid_number(phonenumbers.parse(number, 'US'))


# What is replaced, what every such number holds (and most text does not: looked for first, in a third of the time), the
# number, and which are valid.
_NUMBERS = (
    ('account', re.compile(r'\d\d(?<=[A-Za-z]{2}\d\d) ?[\dA-Za-z]'), _IBAN, iban.is_valid),
    ('card', re.compile(r'\d(?:[ -]?\d){12}'), _CARD, _is_card),
    ('phone', re.compile(r'\(\d{3}\)'), _PHONE, _is_telephone),
    ('ip', re.compile(r'\.\d{1,3}\.\d'), _IPV4, _is_public),
    ('ip', re.compile(r':[\da-fA-F]{0,4}:'), _IPV6, _is_public),
)


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which conversations are kept, and whether people's details are taken out of them: keys of `config.ingest`."""

    languages: Sequence[str]  # of all if empty
    keep_toxic: bool
    keep_redacted: bool
    keep_jailbreaks: bool
    keep_refusals: bool
    max_characters: int  # 0: any
    scrub: bool

    def reason_to_drop(self, talk: dict[str, Any]) -> str:
        """Why a conversation is dropped, as a short name to count it by; '' if it is kept."""
        said = [message['content'] for message in talk['messages']]
        if talk['toxic'] and not self.keep_toxic:
            return 'toxic'
        if talk['redacted'] and not self.keep_redacted:
            return 'redacted'
        if self.languages and talk['language'] and talk['language'] not in self.languages:
            return 'another_language'
        if self.max_characters and sum(map(len, (talk['system'], *said))) > self.max_characters:
            return 'too_long'
        if not self.keep_jailbreaks and any(_JAILBREAK.search(text[:_LOOKED_AT]) for text in said[::2]):
            return 'jailbreak'
        if not self.keep_refusals and all(map(is_refusal, said[1::2])):
            return 'refused_throughout'
        return ''


def scrub(text: str, counts: Counter) -> str:
    """Text with e-mail and network addresses, telephone, card and account numbers replaced by what they are, counted.

    Numbers must be valid, by their check digits or, of telephones, by the plan of the country that they name, or of
    North America for those that look like (415) 555-2671.

    >>> scrub('Mail ann@example.org or call +44 20 7946 0018, not 1234.', Counter())
    'Mail [email] or call [phone], not 1234.'
    """

    def replace(kind: str, valid):
        def one(found: re.Match) -> str:
            for word in reversed(list(_WORD.finditer(found[0]))):  # what follows a number may look like more of it
                if valid(found[0][: word.end()]):
                    counts[f'scrubbed_{kind}'] += 1
                    return f'[{kind}]{found[0][word.end() :]}'
            return found[0]

        return one

    if '@' in text:
        text = _EMAIL.sub(replace('email', lambda _: True), text)
    if '+' in text:
        for match in reversed(list(phonenumbers.PhoneNumberMatcher(text, None))):
            counts['scrubbed_phone'] += 1
            text = f'{text[: match.start]}[phone]{text[match.end :]}'
    for kind, needed, pattern, valid in _NUMBERS:
        if needed.search(text):
            text = pattern.sub(replace(kind, valid), text)
    return text
