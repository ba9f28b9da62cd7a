"""A tokenizer for models of the `tokenizers` library (tokenizer.json)."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest
from rlhi_jax.tokenizers.added_tokens import is_text


class BpeTokenizer:
    """A tokenizer loaded from a tokenizer.json; see `rlhi_jax.tokenizers.Tokenizer` for the interface."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._full = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding='utf-8'))
            description = json.loads(self._full.to_str())  # rewritten by the library, which drops outdated settings
            added, model = description['added_tokens'], description['model']
            text = [token for token in added if not token['special'] and is_text(token['content'])]
            text = [token for token in text if _vocabulary(model).get(token['content']) == token['id']]
            self.control = {token['content']: token['id'] for token in added if token not in text}
            # Without control tokens among its added tokens, the model cannot recognise them in text.
            plain = {**description, 'added_tokens': text, 'post_processor': None, 'truncation': None, 'padding': None}
            opening, inside = ({**plain, **_prefixing(plain, opens)} for opens in (True, False))
            self._opening = self._inside = tokenizers.Tokenizer.from_str(json.dumps(opening))
            if inside != opening:
                self._inside = tokenizers.Tokenizer.from_str(json.dumps(inside))
        except Exception as error:  # the Rust code raises bare Exceptions
            raise UserError(
                f'{path} cannot be loaded as a tokenizer ({error}): download or import the model again'
            ) from None
        self.vocab_size = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        self.digest = file_digest(path)
        unknown = model.get('unk_id', self._full.token_to_id(model.get('unk_token') or ''))
        self._control_ids = frozenset(self.control.values()) - {unknown}  # ordinary text may contain unknown characters

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        ids = (self._opening if opens else self._inside).encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise UserError(f'{self._path} turns ordinary text into control tokens, which is unsafe: use another model')
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._full.decode(list(ids), skip_special_tokens=True)


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    return model['vocab'] if isinstance(model.get('vocab'), dict) else {}


def _prefixing(description: dict[str, Any], opens: bool) -> dict[str, Any]:
    """Return the normalizer and pre-tokenizer for text that starts a run (`opens`) or continues one.

    A run is the text between two control tokens. Tokenizers made from SentencePiece models add a space at the start of
    every run, using `Prepend` or `Metaspace` with scheme 'always'. `ByteLevel` with `add_prefix_space` does the same.
    Text that continues a run must not get such a space. Metaspace's scheme 'first' adds a space only at the start of
    the whole input, where chats have a control token, so we replace 'first' with 'never'.
    """
    steps = _steps(description['normalizer'], 'normalizers')
    if not opens:
        steps = [step for step in steps if step['type'] != 'Prepend']
    splits = _steps(description['pre_tokenizer'], 'pretokenizers')
    for i, step in enumerate(splits):
        prefixes = step.get('prepend_scheme', 'never') != 'never' or step.get('add_prefix_space', False)
        if prefixes and i > 0:
            raise ValueError(f'its {step["type"]} adds a space before every word that earlier steps split off')
        if prefixes and step['type'] == 'Metaspace' and (not opens or step['prepend_scheme'] == 'first'):
            splits[i] = {**step, 'prepend_scheme': 'never'}
        elif prefixes and step['type'] == 'ByteLevel' and not opens:
            splits[i] = {**step, 'add_prefix_space': False}
    return {
        'normalizer': {'type': 'Sequence', 'normalizers': steps},
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': splits},
    }


def _steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer in order, with nested sequences flattened."""
    if component is None:
        return []
    if component['type'] != 'Sequence':
        return [component]
    return [step for part in component[key] for step in _steps(part, key)]
