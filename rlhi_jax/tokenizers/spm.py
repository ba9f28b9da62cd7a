"""A tokenizer for SentencePiece models (tokenizer.model)."""

from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.tokenizers.added_tokens import added_tokens, is_text

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece


class SentencePieceTokenizer:
    """A tokenizer loaded from a tokenizer.model; see `rlhi_jax.tokenizers.Tokenizer` for the interface."""

    def __init__(self, path: Path):
        model = sentencepiece_model_pb2.ModelProto()
        try:
            model.ParseFromString(Path(path).read_bytes())
            self.control = {
                piece.piece: i
                for i, piece in enumerate(model.pieces)
                if piece.type == _PIECE.CONTROL or (piece.type == _PIECE.USER_DEFINED and not is_text(piece.piece))
            }
            self._prefixes = model.normalizer_spec.add_dummy_prefix
            if self._prefixes and model.trainer_spec.treat_whitespace_as_suffix:
                raise ValueError('it adds a space after text, not before it')
            for piece in model.pieces:  # SentencePiece matches user-defined pieces in text, but not control tokens
                if piece.type == _PIECE.USER_DEFINED and piece.piece in self.control:
                    piece.type = _PIECE.CONTROL
            self._opening = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
            # Text that follows other text, not a control token, must not get a space before it.
            model.normalizer_spec.add_dummy_prefix = False
            self._inside = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        except Exception as error:  # protobuf and sentencepiece raise exceptions of unrelated types
            raise UserError(
                f'{path} cannot be loaded as a SentencePiece model ({error}): download or import the model again'
            ) from None
        added = _added_tokens(Path(path).parent, [piece.piece for piece in model.pieces])
        self.control |= added
        self.vocab_size = max([self._inside.vocab_size() - 1, *added.values()]) + 1
        self.digest = digest(file_digest(path), added) if added else file_digest(path)
        self._control_ids = frozenset(self.control.values())

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        return (self._opening if opens else self._inside).encode(text)

    def decode(self, ids: list[int]) -> str:
        text = self._inside.decode([i for i in ids if i not in self._control_ids])
        return text.removeprefix(' ') if self._prefixes else text


def _added_tokens(folder: Path, pieces: list[str]) -> dict[str, int]:
    """Return the ids of the tokens that tokenizer_config.json and added_tokens.json add to a model, keyed by token.

    Raises:
      UserError: a file is damaged, or gives one of the model's token ids to a different token.
    """
    tokens = added_tokens(folder)
    for token, fields in tokens:
        if token < len(pieces) and pieces[token] != fields['content']:
            raise UserError(
                f'{folder}: tokenizer_config.json or added_tokens.json gives the id {token} to {fields["content"]!r}, '
                f'but tokenizer.model gives it to {pieces[token]!r}: download the model again'
            )
    return {fields['content']: token for token, fields in tokens if token >= len(pieces)}
