"""Reads the tokens that tokenizer_config.json and added_tokens.json add to a tokenizer's vocabulary."""

from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json

FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')  # of an added token


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
