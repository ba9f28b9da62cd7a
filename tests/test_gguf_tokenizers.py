"""Tokenizers of GGUF files, against those of tokenizers and SentencePiece, and every refusal by name."""

import json
import os
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import pytest  # noqa: E402

from rlhi_jax.conversion.gguf import write_tokenizer  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402

SHARED_DATA = Path(__file__).parents[2] / 'shared/data'
VARIED_TEXTS = [
    'Hello world!',
    '  two  spaces\n\nand lines\r\n\ttabs',
    '12345 6 x7',
    'It\'s $1,234.56, "quoted" — I\'LL say',
    'naïve café e\u0301 straße 日本語 العربية',
    '🙂🏽 \u200b emoji',
    'def f(x):\n    return x ** 2\n',
    '',
    ' ',
]


@pytest.fixture(scope='module')
def gguf():
    return pytest.importorskip('gguf')


def write_tokenizer_gguf(gguf, path, *, model, pieces, types, pre=None, merges=None, scores=None, fields=()):
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_context_length(512)
    writer.add_tokenizer_model(model)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    if pre:
        writer.add_tokenizer_pre(pre)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for name, value in dict(fields).items():
        getattr(writer, f'add_{name}')(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_file(gguf, path, pre):
    from tokenizers import pre_tokenizers

    pieces = ['<|end|>', '<tool>', *sorted(pre_tokenizers.ByteLevel.alphabet())]
    types = [3, 4] + [1] * 256
    merges = ['Ġ Ġ', 'h e', 'l l', 'he ll', '1 2', 'Ã ©', 'Ġ 1']
    pieces += [merge.replace(' ', '') for merge in merges] + ['hello', '[PAD]', '<|start|>']
    types += [1] * (len(merges) + 1) + [5, 3]
    fields = {
        'bos_token_id': pieces.index('<|start|>'),
        'eos_token_id': 0,
        'pad_token_id': 0,
        'chat_template': '{{ messages[0] }}\n',
    }
    write_tokenizer_gguf(gguf, path, model='gpt2', pieces=pieces, types=types, pre=pre, merges=merges, fields=fields)
    return pieces


@pytest.mark.parametrize('pre', ['gpt-2', 'default', 'smollm', 'llama-bpe', 'qwen2'])
def test_byte_level_tokenizers(gguf, tmp_path, pre):
    tokenizers = pytest.importorskip('tokenizers')
    pieces = byte_level_file(gguf, tmp_path / 'x.gguf', pre)
    (tmp_path / 'out').mkdir()
    write_tokenizer(tmp_path / 'x.gguf', tmp_path / 'out')
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / 'out/tokenizer.json'))

    def split(text):
        return tokenizer.encode(text, add_special_tokens=False).tokens

    for text in VARIED_TEXTS:
        encoding = tokenizer.encode(text)
        assert [pieces[i] for i in encoding.ids] == encoding.tokens
        if pre != 'qwen2':  # which composes accents
            assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    assert split('he<|end|><tool>') == ['he', '<|end|>', '<tool>']
    assert tokenizer.decode(tokenizer.encode('he<|end|><tool>').ids) == 'he<tool>'
    # No merge makes `hello` a token; only a tokenizer that looks up whole words first yields it.
    assert split('hello') == (['hello'] if pre == 'llama-bpe' else ['hell', 'o'])
    assert split('12') == (['12'] if pre in ('gpt-2', 'default', 'llama-bpe') else ['1', '2'])
    assert split(' 1') == (['Ġ1'] if pre in ('gpt-2', 'default') else ['Ġ', '1'])
    assert split('e\u0301') == (['Ã©'] if pre == 'qwen2' else split('e') + split('\u0301'))
    assert tokenizer.token_to_id('[PAD]') is None and tokenizer.token_to_id('<|start|>') == len(pieces) - 1

    config = json.loads((tmp_path / 'out/tokenizer_config.json').read_text())
    assert (config['bos_token'], config['eos_token'], config['pad_token']) == ('<|start|>', '<|end|>', '<|end|>')
    assert config['model_max_length'] == 512 and config['add_bos_token'] is False and 'unk_token' not in config
    generation = json.loads((tmp_path / 'out/generation_config.json').read_text())
    assert generation == {'bos_token_id': len(pieces) - 1, 'eos_token_id': 0, 'pad_token_id': 0}
    assert (tmp_path / 'out/chat_template.jinja').read_text() == '{{ messages[0] }}\n'


def test_tokenizers_refused_by_name(gguf, tmp_path):
    path, out = tmp_path / 'x.gguf', tmp_path / 'out'
    byte_level_file(gguf, path, 'tekken')
    with pytest.raises(UserError, match="tokenizer.ggml.pre is 'tekken'"):
        write_tokenizer(path, out)
    byte_level_file(gguf, path, None)
    with pytest.raises(UserError, match='tokenizer.ggml.pre is None'):
        write_tokenizer(path, out)
    write_tokenizer_gguf(gguf, path, model='t5', pieces=['a'], types=[1])
    with pytest.raises(UserError, match="tokenizer.ggml.model is 't5'"):
        write_tokenizer(path, out)
    write_tokenizer_gguf(gguf, path, model='gpt2', pre='gpt-2', pieces=['a'], types=[1])
    with pytest.raises(UserError, match='tokenizer.ggml.merges'):
        write_tokenizer(path, out)
    write_tokenizer_gguf(gguf, path, model='llama', pieces=['a', 'a'], types=[1, 2], scores=[0.0, 0.0])
    with pytest.raises(UserError, match='tokenizer.ggml.tokens contains duplicates'):
        write_tokenizer(path, out)
    write_tokenizer_gguf(gguf, path, model='llama', pieces=['a', 'b'], types=[1, 1], scores=[0.0, 0.0])
    with pytest.raises(UserError, match='marks 0 unknown tokens'):
        write_tokenizer(path, out)
    assert not out.exists()


@pytest.mark.parametrize('prefix', [True, False])
def test_sentencepiece_tokenizer(gguf, tmp_path, prefix):
    original = SHARED_DATA / 'tokenizers/mistral-v1.model'
    if not original.exists():
        pytest.skip(f'{original.name} is not among the shared data beside the repository')
    sentencepiece = pytest.importorskip('sentencepiece')
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(original.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = prefix
    write_tokenizer_gguf(
        gguf,
        tmp_path / 'x.gguf',
        model='llama',
        pieces=[piece.piece for piece in proto.pieces],
        types=[piece.type for piece in proto.pieces],
        scores=[piece.score for piece in proto.pieces],
        fields={'bos_token_id': 1, 'eos_token_id': 2, 'unk_token_id': 0, 'add_space_prefix': prefix},
    )
    (tmp_path / 'out').mkdir()
    write_tokenizer(tmp_path / 'x.gguf', tmp_path / 'out')
    expected = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    rebuilt = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'out/tokenizer.model'))
    for text in [*VARIED_TEXTS, '<s>[INST] x [/INST]</s>', 'ab' * 200]:
        assert rebuilt.encode(text) == expected.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == expected.decode(expected.encode(text)) == text
    for name in ('bos_id', 'eos_id', 'pad_id', 'unk_id', 'vocab_size'):
        assert getattr(rebuilt, name)() == getattr(expected, name)()
    config = json.loads((tmp_path / 'out/tokenizer_config.json').read_text())
    assert config['tokenizer_class'] == 'LlamaTokenizer' and config['unk_token'] == '<unk>'
    assert not (tmp_path / 'out/chat_template.jinja').exists()
