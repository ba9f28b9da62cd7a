"""Filters conversations by language, moderation flags, length, jailbreaks and refusals; scrubs personal details.

Every function handles one conversation at a time and is fast enough that a million conversations do not take hours.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import phonenumbers
from stdnum import iban, luhn

from data_pipelines.raw.formats import RawConversation
from data_pipelines.text.openings import is_refusal

_SEARCHED = 4000  # characters at the beginning of a turn that are searched for jailbreaks
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
# Word boundaries are ASCII, because text in scripts without spaces may directly adjoin an address or a number.
# E-mail addresses are therefore limited to Latin, Greek and Cyrillic letters. RFC 5321 allows 64 characters before
# the @. Without that limit, long words would take hours.
_EMAIL = re.compile(r'[\w.+À-ӿ-]{1,64}@(?:[\wÀ-ӿ-]+\.)+[A-Za-z]{2,}\b', re.ASCII)
_CARD = re.compile(r'(?<![\w./-])(?:3[47]|4\d|5[1-5]|2[2-7]|6[05])(?:[ -]?\d){11,17}(?!\w|\.\w)', re.ASCII)
_IBAN = re.compile(r'\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b', re.ASCII | re.IGNORECASE)
_PHONE = re.compile(r'(?<!\w)\(\d{3}\) ?\d{3}-\d{4}(?![\w-])', re.ASCII)  # North American format, unlike code
# Version numbers look like IP addresses. A preceding word for "version" becomes part of the match, which is then not a
# valid IP address.
_IPV4 = re.compile(
    r'(?:(?:versi|верси|版|バージョン|버전)\S{0,4}\W{0,4})?'
    r'(?<![\w.])(?<![=<>~!]=)(?<![a-z]/)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w|-[a-z])',
    re.ASCII | re.IGNORECASE,
)
_IPV6 = re.compile(  # 2000::/3, the only assigned range; other addresses look like code
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


# Each entry has the kind of number, a quick pattern, the number's full pattern, and a check that the number is valid.
# Every text with a valid number matches the quick pattern, and few other texts do. Searching for the quick pattern
# before the full pattern reduces the time to a third.
_NUMBERS = (
    ('account', re.compile(r'\d\d(?<=[A-Za-z]{2}\d\d) ?[\dA-Za-z]'), _IBAN, iban.is_valid),
    ('card', re.compile(r'\d(?:[ -]?\d){12}'), _CARD, _is_card),
    ('phone', re.compile(r'\(\d{3}\)'), _PHONE, _is_telephone),
    ('ip', re.compile(r'\.\d{1,3}\.\d'), _IPV4, _is_public),
    ('ip', re.compile(r':[\da-fA-F]{0,4}:'), _IPV6, _is_public),
)


@dataclasses.dataclass(frozen=True)
class Filters:
    """Settings for filtering conversations and scrubbing personal details. The fields are keys of `config.ingest`."""

    languages: Sequence[str]  # empty for all languages
    keep_toxic: bool
    keep_redacted: bool
    keep_jailbreaks: bool
    keep_refusals: bool
    max_characters: int  # 0 for no limit
    scrub: bool

    def reason_to_drop(self, conversation: RawConversation) -> str:
        """Return the first reason to drop a conversation, such as 'toxic'; '' if there is none."""
        texts = [message['content'] for message in conversation['messages']]
        if conversation['toxic'] and not self.keep_toxic:
            return 'toxic'
        if conversation['redacted'] and not self.keep_redacted:
            return 'redacted'
        if self.languages and conversation['language'] and conversation['language'] not in self.languages:
            return 'another_language'
        if self.max_characters and sum(map(len, (conversation['system'], *texts))) > self.max_characters:
            return 'too_long'
        if not self.keep_jailbreaks and any(_JAILBREAK.search(text[:_SEARCHED]) for text in texts[::2]):
            return 'jailbreak'
        if not self.keep_refusals and all(map(is_refusal, texts[1::2])):
            return 'refused_throughout'
        return ''


def scrub(text: str, counts: Counter) -> str:
    """Replace e-mail and IP addresses, and phone, card and account numbers, with their kind in brackets; count them.

    Only valid numbers are replaced. Card and account numbers need correct check digits. Phone numbers must fit the
    numbering plan for their country code, or the North American plan if they are written like (415) 555-2671.

    >>> scrub('Mail ann@example.org or call +44 20 7946 0018, not 1234.', Counter())
    'Mail [email] or call [phone], not 1234.'
    """

    def replacer(kind: str, valid: Callable[[str], bool]) -> Callable[[re.Match], str]:
        def replaced(match: re.Match) -> str:
            for word in reversed(list(_WORD.finditer(match[0]))):  # text after a number may look like part of it
                if valid(match[0][: word.end()]):
                    counts[f'scrubbed_{kind}'] += 1
                    return f'[{kind}]{match[0][word.end() :]}'
            return match[0]

        return replaced

    if '@' in text:
        text = _EMAIL.sub(replacer('email', lambda _: True), text)
    if '+' in text:
        for match in reversed(list(phonenumbers.PhoneNumberMatcher(text, None))):
            counts['scrubbed_phone'] += 1
            text = f'{text[: match.start]}[phone]{text[match.end :]}'
    for kind, needed, pattern, valid in _NUMBERS:
        if needed.search(text):
            text = pattern.sub(replacer(kind, valid), text)
    return text
