"""Models of the `tokenizers` library (tokenizer.json)."""

import json
from pathlib import Path

import tokenizers

from rlhi_jax.errors import UserError
from rlhi_jax.files import file_digest


class BpeTokenizer:
    """A tokenizer.json; see `rlhi_jax.tokenizers.Tokenizer` for the interface."""

    def __init__(self, path: Path):
        try:
            description = json.loads(Path(path).read_text(encoding='utf-8'))
            self._full = tokenizers.Tokenizer.from_str(json.dumps(description))
            self.control = {token['content']: token['id'] for token in description['added_tokens']}
            # Without its added tokens the model cannot tell that a text spells one of them.
            plain = {**description, 'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None}
            self._text = tokenizers.Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # the Rust side raises bare Exception
            raise UserError(f'{path} is no tokenizer that can be loaded ({error}): import the model again') from None
        self.vocab_size = self._full.get_vocab_size(with_added_tokens=True)
        self.digest = file_digest(path)
        self._control_ids = frozenset(self.control.values())

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        del opens  # only SentencePiece has a dummy prefix
        ids = self._text.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise UserError('this tokenizer.json yields control tokens from ordinary text: it cannot be used safely')
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._full.decode(list(ids), skip_special_tokens=True)
