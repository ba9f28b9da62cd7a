"""Converts GGUF files (llama.cpp's format): weights to our parameters, and tokenizers to Hugging Face files."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhi_jax.conversion import gemma
from rlhi_jax.conversion.layout import Leaf, assemble
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import write_bytes, write_json
from rlhi_jax.models.rope import inverse_frequencies
from rlhi_jax.models.spec import ModelSpec, RopeScaling

ARCHITECTURES = ('llama', 'qwen2', 'qwen3', *gemma.FAMILIES)
_BLOCK = 2**22  # about how many weights are dequantised at once

# Token types, which have the same numbers in GGUF and in SentencePiece.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# Regular expressions that split text before BPE merges, keyed by the field `tokenizer.ggml.pre`. None means GPT-2's
# expression, which is built into `pre_tokenizers.ByteLevel`.
_SPLITS = {
    'gpt-2': None,
    'default': None,
    'smollm': None,
    'llama-bpe': rf'{_WORDS}|\p{{N}}{{1,3}}|{_REST}',
    'qwen2': rf'{_WORDS}|\p{{N}}|{_REST}',
}


def read_gguf(path: Path) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    """Read a language model from a GGUF file, dequantising a few rows of a tensor at a time.

    Every tensor type that the `gguf` package can dequantise is supported. If the output matrix equals the embedding
    matrix, only the embedding matrix is returned, and the spec has tied embeddings.

    Returns:
      The spec, our parameters (float32 numpy arrays, layers stacked on axis 0) and the special token ids. The ids are
      `bos_token_id`, `eos_token_id` (a list if the file has different end-of-turn and end-of-text tokens) and
      `pad_token_id`. Each id may be None.

    Raises:
      UserError: the file is missing or damaged, or its architecture, rotary scaling, tensors or tensor types are not
        supported.
    """
    path, reader = Path(path), _open(path)
    fields, tensors = _fields(reader), {tensor.name: tensor for tensor in reader.tensors}
    del reader  # its objects for every token of the tokenizer take hundreds of megabytes
    supported = _tensor_types()
    for name, tensor in tensors.items():
        if (kind := tensor.tensor_type.name) not in supported:
            raise _unsupported(path, f'tensor {name} has type {kind}', ', '.join(supported))
    if _repeats(path, tensors, 'output.weight', 'token_embd.weight'):
        del tensors['output.weight']
    spec = _spec(path, fields, tensors)

    def read(name: str, leaf: Leaf) -> Iterator[np.ndarray]:
        for rows in _dequantised(path, tensors[name], spec.head_dim):
            # In this family, llama.cpp stores the two rows of a rotary pair next to each other. We store them half a
            # head apart, as Hugging Face does.
            if spec.family == 'llama' and leaf.path in ('layers/q', 'layers/k'):
                pairs = rows.reshape(-1, spec.head_dim // 2, 2, rows.shape[-1])
                rows = pairs.swapaxes(1, 2).reshape(rows.shape)
            yield rows

    params = assemble(
        spec,
        'gguf',
        {name: _shape(tensor) for name, tensor in tensors.items()},
        read,
        ignorable=lambda name: name == 'rope_freqs.weight',  # read by `_rope_scaling`
        source=str(path),
    )
    return spec, params, _tokens(fields)


def _open(path: Path):
    try:
        import gguf
    except ImportError:
        raise UserError(f'{path} cannot be read without the gguf package: run `pip install gguf`') from None
    if not path.exists():
        raise UserError(f'{path} does not exist: set --source to an existing .gguf file')
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f'{path} cannot be read as a GGUF file ({error}): download it again') from None


def _fields(reader) -> dict[str, Any]:
    """Return the metadata without the tokenizer's long lists, which are read only where they are needed."""
    long = ('tokenizer.ggml.tokens', 'tokenizer.ggml.merges', 'tokenizer.ggml.scores', 'tokenizer.ggml.token_type')
    return {name: field.contents() for name, field in reader.fields.items() if name not in long}


def _unsupported(path: Path, fault: str, supported: str) -> UserError:
    return UserError(f'{path}: {fault}, but we support only {supported}: choose another file')


def _shape(tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


@functools.cache
def _tensor_types() -> tuple[str, ...]:
    """Try one block of each tensor type, and return the names of those that the gguf package can dequantise."""
    from gguf import GGML_QUANT_SIZES, dequantize

    names = []
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        names.append(kind.name)
    return tuple(names)


def _dequantised(path: Path, tensor, multiple: int = 1) -> Iterator[np.ndarray]:
    """Yield the weights of a tensor in float32, a block of consecutive rows at a time.

    If the tensor's number of rows is divisible by `multiple`, so is the number of rows in each block. A vector is one
    block.
    """
    from gguf import dequantize

    # `tensor.data` is a map of the file; pages of it that have been read would stay in memory.
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = multiple * max(1, _BLOCK // (multiple * _shape(tensor)[-1]))
    for start in range(0, len(rows), step):
        count, offset = min(step, len(rows) - start), tensor.data_offset + start * rows.strides[0]
        block = np.fromfile(path, rows.dtype, count * rows.shape[1], offset=offset).reshape(count, -1)
        block = dequantize(block, tensor.tensor_type)
        yield block if tensor.data.ndim > 1 else block[0]


def _repeats(path: Path, tensors: Mapping[str, Any], name: str, other: str) -> bool:
    """Return whether two tensors of a file have the same weights, whatever their types."""
    if name not in tensors or other not in tensors or _shape(tensors[name]) != _shape(tensors[other]):
        return False
    pairs = zip(_dequantised(path, tensors[name]), _dequantised(path, tensors[other]), strict=True)
    return all(np.array_equal(*rows) for rows in pairs)


def _short(value: float) -> float:
    """Return the shortest decimal that rounds to the same float32, presumably the number that the author wrote."""
    return float(str(np.float32(value)))


def _rounded(value: Any) -> Any:
    return _short(value) if isinstance(value, float) else value


def _spec(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelSpec:
    family = fields.get('general.architecture')
    if family not in ARCHITECTURES:
        raise _unsupported(path, f'field general.architecture is {family!r}', ', '.join(ARCHITECTURES))

    def need(name: str):
        if f'{family}.{name}' not in fields:
            raise UserError(f'{path} is incomplete (no field {family}.{name}): download it again')
        return fields[f'{family}.{name}']

    width, num_heads = need('embedding_length'), need('attention.head_count')
    head_dim = fields.get(f'{family}.attention.key_length', width // num_heads)
    fixed = {
        'rope.dimension_count': head_dim,
        'attention.value_length': head_dim,
        'rope.scaling.type': 'none',
        'rope.scale_linear': 1.0,
        'expert_count': 0,
        'attention.sliding_window': 0,
    }
    if family in gemma.FAMILIES:
        del fixed['attention.sliding_window']
    if family == 'gemma3' and fields.get('gemma3.rope.scaling.type') == 'linear':
        del fixed['rope.scaling.type']
    for name, value in fixed.items():
        stated = fields.get(f'{family}.{name}', value)
        if stated != value:
            raise _unsupported(path, f'field {family}.{name} is {stated!r}', repr(value))
    if 'token_embd.weight' not in tensors:
        raise UserError(f'{path} has no tensor token_embd.weight: use a file that contains the whole model')
    spec = ModelSpec(
        family=family,
        vocab_size=_shape(tensors['token_embd.weight'])[0],
        width=width,
        mlp_width=need('feed_forward_length'),
        num_layers=need('block_count'),
        num_heads=num_heads,
        num_kv_heads=fields.get(f'{family}.attention.head_count_kv', num_heads),
        head_dim=head_dim,
        max_positions=need('context_length'),
        rope_theta=_short(fields.get(f'{family}.rope.freq_base', 10_000.0)),
        norm_eps=_short(need('attention.layer_norm_rms_epsilon')),
        tied_embeddings='output.weight' not in tensors,
        qkv_bias=family == 'qwen2',
        qk_norm=family == 'qwen3',
    )
    if family in gemma.FAMILIES:
        return gemma.from_gguf(spec, {name: _rounded(value) for name, value in fields.items()})
    if 'rope_freqs.weight' not in tensors:
        return spec
    return dataclasses.replace(spec, rope_scaling=_rope_scaling(path, spec, tensors))


def _rope_scaling(path: Path, spec: ModelSpec, tensors: Mapping[str, Any]) -> RopeScaling:
    """Return the rotary scaling that produced the tensor `rope_freqs.weight`.

    The tensor contains only one divisor per rotation speed, and many sets of parameters give the same divisors.
    Llama 3.1, 3.2 and 3.3 differ only in the factor. We assume their values for the other parameters. If the result
    does not reproduce the tensor, we reject the file.
    """
    (divisors,) = _dequantised(path, tensors['rope_freqs.weight'])
    factor = _short(divisors.max())
    scaling = RopeScaling(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    scaled = dataclasses.replace(spec, rope_scaling=scaling)
    expected = inverse_frequencies(spec) / inverse_frequencies(scaled)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise _unsupported(path, 'the rotary scaling in tensor rope_freqs.weight is unknown', "Llama 3's")
    return scaling


def _tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    bos, eos, pad, eot = (fields.get(f'tokenizer.ggml.{name}_token_id') for name in ('bos', 'eos', 'padding', 'eot'))
    ends = [token for token in dict.fromkeys((eos, eot)) if token is not None]
    return {'bos_token_id': bos, 'eos_token_id': ends if len(ends) > 1 else eos, 'pad_token_id': pad}


def write_tokenizer(path: Path, folder: Path) -> None:
    """Write a GGUF file's tokenizer as the files of a Hugging Face folder.

    Byte-level BPE becomes `tokenizer.json`, and SentencePiece becomes `tokenizer.model`. The other files are
    `tokenizer_config.json`, `generation_config.json` and, if the GGUF file has a template, `chat_template.jinja`. The
    tokenizer never adds a beginning-of-text token, because the chat template writes it.

    Args:
      path: the GGUF file.
      folder: an existing folder; files with these names in the folder are replaced.

    Raises:
      UserError: the file is damaged or incomplete, or its kind of tokenizer is not supported.
    """
    path, folder = Path(path), Path(folder)
    reader = _open(path)
    fields = _fields(reader)

    def need(name: str) -> list:
        field = reader.fields.get(f'tokenizer.ggml.{name}')
        if field is None:
            raise UserError(f'{path} has no field tokenizer.ggml.{name}: choose a file with a complete tokenizer')
        return field.contents()

    kind, pieces, types = fields.get('tokenizer.ggml.model'), need('tokens'), need('token_type')
    unknown = fields.get('tokenizer.ggml.unknown_token_id')
    # Gemma's files mark the unknown token as a control token.
    if kind == 'llama' and UNKNOWN not in types and unknown is not None:
        types = [UNKNOWN if i == unknown else type_ for i, type_ in enumerate(types)]
    if len(set(pieces)) != len(pieces) or len(types) != len(pieces):
        raise UserError(
            f'{path}: field tokenizer.ggml.tokens contains duplicates or is not as long as tokenizer.ggml.token_type: '
            'choose another file'
        )
    if kind == 'gpt2':
        split = fields.get('tokenizer.ggml.pre')
        if split not in _SPLITS:
            raise _unsupported(path, f'field tokenizer.ggml.pre is {split!r}', ', '.join(_SPLITS))
        text = _byte_level(pieces, types, need('merges'), split)
        write_bytes(folder / 'tokenizer.json', text.encode())
    elif kind == 'llama':
        if types.count(UNKNOWN) != 1:
            raise _unsupported(path, f'tokenizer.ggml.token_type marks {types.count(UNKNOWN)} unknown tokens', 'one')
        # llama.cpp's converter writes user-defined pieces with plain spaces.
        marked = (type_ == USER_DEFINED for type_ in types)
        pieces = [piece.replace(' ', '\u2581') if mark else piece for piece, mark in zip(pieces, marked, strict=True)]
        write_bytes(folder / 'tokenizer.model', _sentencepiece(pieces, types, need('scores'), fields))
    else:
        raise _unsupported(path, f'field tokenizer.ggml.model is {kind!r}', "'gpt2' and 'llama'")
    write_json(folder / 'tokenizer_config.json', _tokenizer_config(kind, pieces, types, fields))
    generation = {name: value for name, value in _tokens(fields).items() if value is not None}
    write_json(folder / 'generation_config.json', generation)
    if 'tokenizer.chat_template' in fields:
        write_bytes(folder / 'chat_template.jinja', fields['tokenizer.chat_template'].encode())


def _byte_level(pieces: list[str], types: list[int], merges: list[str], split: str) -> str:
    """Return the text of tokenizer.json for a byte-level BPE tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    # For ids that a vocabulary skips, converters add unused tokens called [PAD...]. We leave these tokens out.
    vocab = {piece: i for i, piece in enumerate(pieces) if types[i] != UNUSED}
    pairs = [tuple(merge.split(' ', 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=split == 'llama-bpe'))
    if split == 'qwen2':
        tokenizer.normalizer = normalizers.NFC()
    if _SPLITS[split] is not None:
        first = [pre_tokenizers.Split(Regex(_SPLITS[split]), behavior='isolated')]
    else:
        first = [pre_tokenizers.Digits(individual_digits=True)] if split == 'smollm' else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_SPLITS[split] is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    tokenizer.decoder = decoders.ByteLevel()
    for kind in (CONTROL, USER_DEFINED):
        added = [piece for piece, type_ in zip(pieces, types, strict=True) if type_ == kind]
        tokenizer.add_tokens([AddedToken(piece, normalized=False, special=kind == CONTROL) for piece in added])
    return tokenizer.to_str(pretty=True)


def _sentencepiece(pieces: list[str], types: list[int], scores: list[float], fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a tokenizer.model with the settings that Llama and Mistral use."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    for piece, type_, score in zip(pieces, types, scores, strict=True):
        model.pieces.add(piece=piece, type=type_, score=score)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = proto.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = BYTE in types
    ids = {name: fields.get(f'tokenizer.ggml.{key}_token_id', -1) for name, key in _NAMED_TOKENS.items()}
    ids['unk'] = types.index(UNKNOWN)
    for name, token in ids.items():
        setattr(trainer, f'{name}_id', token)
        if token >= 0:
            setattr(trainer, f'{name}_piece', pieces[token])
    trainer.split_digits = trainer.allow_whitespace_only_pieces = True
    normalizer.name = 'identity'
    normalizer.add_dummy_prefix = fields.get('tokenizer.ggml.add_space_prefix', True)
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model.SerializeToString()


_TOKENIZER_CLASSES = {
    'gpt2': 'PreTrainedTokenizerFast',
    'llama': 'LlamaTokenizer',
    'gemma2': 'GemmaTokenizer',
    'gemma3': 'GemmaTokenizer',
}
_NAMED_TOKENS = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding', 'unk': 'unknown'}


def _tokenizer_config(kind: str, pieces: list[str], types: list[int], fields: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        'tokenizer_class': _TOKENIZER_CLASSES.get(fields.get('general.architecture'), _TOKENIZER_CLASSES[kind]),
        'add_bos_token': False,
        'add_eos_token': False,
        'clean_up_tokenization_spaces': False,
        'model_max_length': fields.get(f'{fields.get("general.architecture")}.context_length'),
    }
    for name, key in _NAMED_TOKENS.items():
        token = fields.get(f'tokenizer.ggml.{key}_token_id')
        if token is not None:
            config[f'{name}_token'] = pieces[token]
    if kind == 'llama':
        # SentencePiece never matches control tokens in text; Hugging Face tokenizers match the tokens listed here.
        flags = {'lstrip': False, 'rstrip': False, 'normalized': False, 'single_word': False}
        special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
        config['added_tokens_decoder'] = {
            str(i): {'content': piece, 'special': special[type_], **flags}
            for i, (piece, type_) in enumerate(zip(pieces, types, strict=True))
            if type_ in special
        }
        config['legacy'] = False
        config['add_prefix_space'] = fields.get('tokenizer.ggml.add_space_prefix', True)
    return config
