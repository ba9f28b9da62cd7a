"""One interface to two kinds of tokenizers: SentencePiece models, and BPE models of the package `tokenizers`.

Worked example, with SmolLM2's tokenizer:

    tokenizer = load_tokenizer(folder)
    tokenizer.control['<|im_end|>']        -> 2          only a chat template may produce this id
    tokenizer.encode('Hi <|im_end|>')      -> [26843, 2067, 108, 306, 79, 486, 108, 46]   user text stays text
"""

from pathlib import Path
from typing import Protocol

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest
from rlhi_jax.tokenizers.bpe import BpeTokenizer
from rlhi_jax.tokenizers.spm import SentencePieceTokenizer

_FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'added_tokens.json')


class Tokenizer(Protocol):
    """The tokenizer interface that the rest of `rlhi_jax` uses.

    Attributes:
      vocab_size: the number of ids, including control tokens.
      control: the ids of all control tokens, keyed by the tokens' text.
      digest: a hash of the tokenizer's file and, for SentencePiece, of the tokens that other files add.
    """

    vocab_size: int
    control: dict[str, int]
    digest: str

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        """Return the token ids of a text, which never include control tokens, even if the text spells one.

        Set `opens` if the text comes first or follows a control token. SentencePiece and similar tokenizers then add a
        space before the text.
        """

    def decode(self, ids: list[int]) -> str:
        """Return the text for a list of ids, without control tokens."""


# Each tokenizer is loaded only once: loading takes a second, and all models of a loop have the same tokenizer.
_LOADED: dict[tuple[str, ...], Tokenizer] = {}


def _content(folder: Path) -> tuple[str, ...]:
    """Return the digests of a folder's tokenizer files, with '' in place of a missing file's digest."""
    return tuple(file_digest(folder / name) if (folder / name).exists() else '' for name in _FILES)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the `tokenizer.json` in a folder, or the `tokenizer.model` if there is no `tokenizer.json`.

    Raises:
      UserError: the folder contains neither file, or the file cannot be read.
    """
    folder = Path(folder)
    for name, kind in (('tokenizer.json', BpeTokenizer), ('tokenizer.model', SentencePieceTokenizer)):
        if (folder / name).exists():
            key = _content(folder)
            if key not in _LOADED:
                _LOADED[key] = kind(folder / name)
            return _LOADED[key]
    raise UserError(f'{folder} contains neither tokenizer.json nor tokenizer.model: download or import the model again')
