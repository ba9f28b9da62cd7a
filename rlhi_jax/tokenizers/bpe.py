"""Models of the `tokenizers` library (tokenizer.json)."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest


class BpeTokenizer:
    """A tokenizer.json; see `rlhi_jax.tokenizers.Tokenizer` for the interface."""

    def __init__(self, path: Path):
        try:
            self._full = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding='utf-8'))
            description = json.loads(self._full.to_str())  # older spellings of the same settings are gone
            self.control = {token['content']: token['id'] for token in description['added_tokens']}
            # Without its added tokens the model cannot tell that a text spells one of them.
            plain = {**description, 'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None}
            opening, inside = ({**plain, **_prefixing(plain, opens)} for opens in (True, False))
            self._opening = self._inside = tokenizers.Tokenizer.from_str(json.dumps(opening))
            if inside != opening:
                self._inside = tokenizers.Tokenizer.from_str(json.dumps(inside))
        except Exception as error:  # the Rust side raises bare Exception
            raise UserError(f'{path} is no tokenizer that can be loaded ({error}): import the model again') from None
        self.vocab_size = self._full.get_vocab_size(with_added_tokens=True)
        self.digest = file_digest(path)
        model = description['model']
        unknown = model.get('unk_id', self._full.token_to_id(model.get('unk_token') or ''))
        self._control_ids = frozenset(self.control.values()) - {unknown}  # ordinary text may hold unknown letters

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        ids = (self._opening if opens else self._inside).encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise UserError('this tokenizer.json yields control tokens from ordinary text: it cannot be used safely')
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._full.decode(list(ids), skip_special_tokens=True)


def _prefixing(description: dict[str, Any], opens: bool) -> dict[str, Any]:
    """The normalizer and pre-tokenizer of such a description for a run of text, which may open its input or not.

    Models after SentencePiece put a space before every run that follows a control token, by `Prepend` or by
    `Metaspace` of scheme 'always'; so does `ByteLevel` with `add_prefix_space`. Inside a text there must be none.
    Metaspace's scheme 'first' prefixes only what starts the whole input, and that is a control token in chats.
    """
    steps = _steps(description['normalizer'], 'normalizers')
    if not opens:
        steps = [step for step in steps if step['type'] != 'Prepend']
    splits = _steps(description['pre_tokenizer'], 'pretokenizers')
    for i, step in enumerate(splits):
        prefixes = step.get('prepend_scheme', 'never') != 'never' or step.get('add_prefix_space', False)
        if prefixes and i > 0:
            raise UserError(f'its {step["type"]} prefixes a space to every word that the steps before it cut off')
        if prefixes and step['type'] == 'Metaspace' and (not opens or step['prepend_scheme'] == 'first'):
            splits[i] = {**step, 'prepend_scheme': 'never'}
        elif prefixes and step['type'] == 'ByteLevel' and not opens:
            splits[i] = {**step, 'add_prefix_space': False}
    return {
        'normalizer': {'type': 'Sequence', 'normalizers': steps},
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': splits},
    }


def _steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A normalizer's or pre-tokenizer's steps in order, sequences within sequences unfolded."""
    if component is None:
        return []
    if component['type'] != 'Sequence':
        return [component]
    return [step for part in component[key] for step in _steps(part, key)]
