"""Reads tokens that are added to a tokenizer's vocabulary, and says which of them stand for ordinary text."""

from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json

# Elements of HTML, without `s`, since `</s>` ends texts in many models.
_ELEMENTS = frozenset(
    ('a', 'b', 'bbox', 'blockquote', 'body', 'caption', 'code', 'div', 'em', 'footer', 'h1', 'h2', 'h3', 'h4', 'h5',
     'h6', 'html', 'i', 'iframe', 'img', 'li', 'span', 'strong', 'sub', 'sup', 'table', 'tbody', 'td', 'tfoot', 'th',
     'thead', 'tr', 'u', 'ul')
)  # fmt: skip
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')  # of an added token


def is_text(token: str) -> bool:
    """Return whether a token that is not special stands for ordinary text, which users may write.

    Gemma's tokenizers list runs of white space and tags of HTML in this way. Other such tokens, such as `<think>`, are
    control tokens for us: only a chat template may write them.

    >>> [token for token in ('\\n\\n', '\u2581\u2581', '</table>', '<think>', '</s>') if is_text(token)]
    ['\\n\\n', '\u2581\u2581', '</table>']
    """
    tag = token.removeprefix('<').removeprefix('/').removesuffix('>')
    return not token.replace('\u2581', ' ').strip() or (token in (f'<{tag}>', f'</{tag}>') and tag in _ELEMENTS)


def added_tokens(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the tokens that tokenizer_config.json and added_tokens.json define, as (id, fields) in order of id.

    Raises:
      UserError: a file is damaged, a token is not text, or an id is negative or not a whole number.
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
            f'{folder}: an added token in tokenizer_config.json or added_tokens.json lacks a text or a valid id: '
            f'{remedy}'
        ) from None
    return sorted(tokens.items())
