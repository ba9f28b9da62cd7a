"""SentencePiece models (tokenizer.model)."""

from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rlhi_jax.errors import UserError
from rlhi_jax.files import file_digest

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece


class SentencePieceTokenizer:
    """A tokenizer.model; see `rlhi_jax.tokenizers.Tokenizer` for the interface."""

    def __init__(self, path: Path):
        model = sentencepiece_model_pb2.ModelProto()
        try:
            model.ParseFromString(Path(path).read_bytes())
            self.control = {
                piece.piece: i
                for i, piece in enumerate(model.pieces)
                if piece.type in (_PIECE.CONTROL, _PIECE.USER_DEFINED)
            }
            self._prefixes = model.normalizer_spec.add_dummy_prefix
            # A boundary inside a text must not gain a space, and text must not match user-defined pieces.
            model.normalizer_spec.add_dummy_prefix = False
            for piece in model.pieces:
                if piece.type == _PIECE.USER_DEFINED:
                    piece.type = _PIECE.CONTROL
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        except Exception as error:  # protobuf and sentencepiece raise unrelated types
            raise UserError(f'{path} is no SentencePiece model ({error}): import the model again') from None
        self.vocab_size = self._model.vocab_size()
        self.digest = file_digest(path)
        self._control_ids = frozenset(self.control.values())

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        if not text:
            return []
        return self._model.encode(' ' + text if opens and self._prefixes else text)

    def decode(self, ids: list[int]) -> str:
        text = self._model.decode([i for i in ids if i not in self._control_ids])
        return text.removeprefix(' ') if self._prefixes else text
