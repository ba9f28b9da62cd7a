"""Reads a tokenizer's added tokens, and decides which of them are ordinary text rather than control tokens."""

from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json

# HTML elements, without `s`, because many models use `</s>` as their end-of-text token.
_ELEMENTS = frozenset(
    ('a', 'b', 'bbox', 'blockquote', 'body', 'caption', 'code', 'div', 'em', 'footer', 'h1', 'h2', 'h3', 'h4', 'h5',
     'h6', 'html', 'i', 'iframe', 'img', 'li', 'span', 'strong', 'sub', 'sup', 'table', 'tbody', 'td', 'tfoot', 'th',
     'thead', 'tr', 'u', 'ul')
)  # fmt: skip
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')  # the boolean fields of an added token


def is_text(token: str) -> bool:
    """Return whether an added token that is not marked as special is ordinary text, which users may write.

    For example, Gemma's tokenizers list runs of white space and HTML tags as added tokens. We treat all other added
    tokens, such as `<think>`, as control tokens: only a chat template may write them.

    >>> [token for token in ('\\n\\n', '\u2581\u2581', '</table>', '<think>', '</s>') if is_text(token)]
    ['\\n\\n', '\u2581\u2581', '</table>']
    """
    tag = token.removeprefix('<').removeprefix('/').removesuffix('>')
    return not token.replace('\u2581', ' ').strip() or (token in (f'<{tag}>', f'</{tag}>') and tag in _ELEMENTS)


def added_tokens(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the tokens that tokenizer_config.json and added_tokens.json define, as (id, fields) pairs, sorted by id.

    Raises:
      UserError: a file is damaged, a token's content is not a string, or an id is negative or not a whole number.
    """
    remedy = 'download the model again'
    config, listed = (
        read_json(folder / name, remedy, fields=()) if (folder / name).exists() else {}
        for name in ('tokenizer_config.json', 'added_tokens.json')
    )
    decoder = config.get('added_tokens_decoder') or {}
    tokens: dict[int, dict[str, Any]] = {}
    try:
        for token, fields in decoder.items():
            flags = {flag: bool(fields.get(flag, False)) for flag in FLAGS}
            tokens[int(token)] = {'content': fields['content'], **flags}
        for content, token in listed.items():
            tokens.setdefault(token, {'content': content, **dict.fromkeys(FLAGS, False), 'special': True})
        if any(type(token) is not int or token < 0 for token in tokens):
            raise ValueError
        if not all(isinstance(fields['content'], str) for fields in tokens.values()):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f'{folder}: an added token in tokenizer_config.json or added_tokens.json has no text or no valid id: '
            f'{remedy}'
        ) from None
    return sorted(tokens.items())
