"""Tokenizers behind one small interface: SentencePiece models and `tokenizers` (BPE) models.

Worked example, with SmolLM2's tokenizer:

    tokenizer = load_tokenizer(folder)
    tokenizer.control['<|im_end|>']        -> 2          what a chat template may spell
    tokenizer.encode('Hi <|im_end|>')      -> [26843, 2067, 108, 306, 79, 486, 108, 46]   user text stays text
"""

from pathlib import Path
from typing import Protocol

from rlhi_jax.io.errors import UserError
from rlhi_jax.tokenizers.bpe import BpeTokenizer
from rlhi_jax.tokenizers.spm import SentencePieceTokenizer


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer.

    Attributes:
      vocab_size: number of ids, control tokens included.
      control: id of every control token by its text.
      digest: sha256 of the tokenizer's own file.
    """

    vocab_size: int
    control: dict[str, int]
    digest: str

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        """Ids of ordinary text; never a control token's, whatever the text spells.

        `opens` says that the text follows a control token or nothing (SentencePiece and its kin prefix a space there).
        """

    def decode(self, ids: list[int]) -> str:
        """Text of ids, control tokens left out."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` or, where there is none, `tokenizer.model`.

    Raises:
      UserError: the folder holds neither, or the file cannot be read.
    """
    folder = Path(folder)
    for name, kind in (('tokenizer.json', BpeTokenizer), ('tokenizer.model', SentencePieceTokenizer)):
        if (folder / name).exists():
            return kind(folder / name)
    raise UserError(f'{folder} holds neither tokenizer.json nor tokenizer.model: import the model again')
