"""What `convert import` checks: an imported and exported model means the same everywhere, or is refused by name."""

import json
import os
import time
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
from conversion_models import random_params, tiny_spec, write_folder  # noqa: E402
from import_sources import SPARE, VOCAB, edit, imported, refused, source  # noqa: E402
from template_families import FAMILIES, SMOLLM2  # noqa: E402

from rlhi_jax.config import base_config  # noqa: E402
from rlhi_jax.convert import export_model  # noqa: E402
from rlhi_jax.data.rows import Capacities  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer  # noqa: E402
from rlhi_jax.tokenizers.template import ChatTemplate, Context  # noqa: E402
from rlhi_jax.training.model import check_pad_token  # noqa: E402


def control(family: str, folder: Path) -> dict[str, int]:
    return tokenizers.Tokenizer.from_file(str(source(folder, family) / 'tokenizer.json')).get_vocab()


# ---- The pad token and the end of a turn ----

PADS = ('own', 'none', 'eos', 'end of turn')


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('pad', PADS)
def test_exported_rewards_and_tokens_are_those_of_transformers(family, pad, tmp_path):
    """Policies and reward models, whatever pad token the source names: each reply alone and all in a padded batch."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    ids = control(family, tmp_path / 'probe')
    end = ids[FAMILIES[family].end]
    pads = {'own': ids[SPARE], 'none': None, 'eos': end, 'end of turn': end}
    eos = 0 if pad == 'end of turn' else end
    replies = ['They purr.', 'No.', 'A much longer reply about cats, purring and sleep.']
    chats = [[dict(role='user', content='Cats?'), dict(role='assistant', content=reply)] for reply in replies]
    for head, kind in (('reward', 'SequenceClassification'), ('lm', 'CausalLM')):
        folder = source(tmp_path / head, family, head, eos_token_id=eos, pad_token_id=pads[pad])
        model = imported(folder)
        export_model(model.path, tmp_path / f'{head}_out', step=None, dtype='float32')
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / f'{head}_out')
        assert theirs.pad_token_id == model.tokens['pad_token_id']
        options = dict(persona='Likes cats.', return_dict=False)
        template = ChatTemplate.load(model.tokenizer_path)
        for chat in chats:
            roles, context = ('user', 'assistant'), Context('', 'Likes cats.')
            pieces = [
                *template.encode(roles[:1], 'Cats?', context).ids,
                *template.generation_prompt(roles[:1], context),
                *template.encode(roles, chat[1]['content'], context).ids,
            ]
            assert pieces == theirs.apply_chat_template(chat, tokenize=True, **options)
        whole = getattr(transformers, f'AutoModelFor{kind}').from_pretrained(tmp_path / f'{head}_out', dtype='float32')
        assert whole.config.eos_token_id == model.tokens['eos_token_id']
        assert end in np.atleast_1d(model.tokens['eos_token_id'])
        if head == 'reward':
            c = base_config()
            c.model.dtype, c.model.logprob_chunk, c.compilation_cache = 'float32', 64, ''
            scorer = CandidateScorer(c, str(model.path), Capacities(512, 256, 4), sees_persona=True)
            ours = scorer([Candidates('a', chats[0][:1], 'Likes cats.', replies)])['a']
            texts = [theirs.apply_chat_template(chat, tokenize=False, **options) for chat in chats]
            theirs.padding_side = 'right'
            with torch.no_grad():
                alone = [whole(**theirs(t, return_tensors='pt', add_special_tokens=False)).logits.item() for t in texts]
                batch = theirs(texts, return_tensors='pt', padding=True, add_special_tokens=False)
                together = whole(**batch).logits[:, 0].tolist()
            np.testing.assert_allclose(ours, alone, atol=2e-4)
            np.testing.assert_allclose(ours, together, atol=2e-4)


def test_the_pad_token_can_be_named(tmp_path, capsys):
    folder = source(tmp_path / 'a', 'llama3', spare=False, pad_token_id=None, eos_token_id=3)
    model = imported(folder)  # all special tokens of this family occur in the template
    assert model.tokens['pad_token_id'] is None
    with pytest.raises(UserError, match=r'a_imported has no pad token.*--pad_token=TOKEN'):
        check_pad_token(model)
    with pytest.raises(
        UserError, match=r'--pad_token=<\|eot_id\|> .* does not end a reply: choose one of <\|begin_of_text'
    ):
        imported(folder, pad_token='<|eot_id|>')
    model = imported(folder, pad_token='<|begin_of_text|>')
    assert model.tokens['pad_token_id'] == 0
    check_pad_token(model)
    config = json.loads((model.tokenizer_path / 'tokenizer_config.json').read_text())
    assert config['pad_token'] == '<|begin_of_text|>'
    capsys.readouterr()


@pytest.mark.parametrize('eos', [0, None, [0, 1]])
def test_the_token_that_ends_a_turn_becomes_an_end(eos, tmp_path, capsys):
    model = imported(source(tmp_path / 'a', eos_token_id=eos))
    assert np.atleast_1d(model.tokens['eos_token_id'])[0] == 2
    assert 'eos_token_id: added <|im_end|> (2), which ends a turn' in capsys.readouterr().err


@pytest.mark.parametrize('tokens', [dict(eos_token_id=VOCAB), dict(pad_token_id=-1), dict(eos_token_id=['2'])])
def test_ids_outside_the_vocabulary(tokens, tmp_path):
    (name,) = tokens
    refused(source(tmp_path / 'a', **tokens), f'{name} is .*, which is not a token of the vocabulary')


# ---- Templates ----

USERS_ONLY = (
    "{% for message in messages if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MEANING_LOST = {
    'the system text': USERS_ONLY,
    'messages': SMOLLM2.replace("message['content']", "''"),
    'repeats messages': SMOLLM2.replace("message['content']", "message['content'] + ' ' + message['content']"),
}
PARTS_ONLY = SMOLLM2.replace("message['content']", "(message['content'] | first)['text'] | default('')")


@pytest.mark.parametrize('fault', MEANING_LOST)
def test_templates_that_lose_what_was_said(fault, tmp_path):
    folder = source(tmp_path / 'a')
    edit(folder / 'tokenizer_config.json', chat_template=MEANING_LOST[fault])
    words = fault if fault.startswith('repeats') else f'leaves out {fault}'
    refused(folder, f'the chat template {words}: import the model again with --template=NAME')


def test_templates_that_lose_the_persona_or_parts(tmp_path):
    folder = source(tmp_path / 'a')
    edit(folder / 'tokenizer_config.json', chat_template=USERS_ONLY)
    refused(folder, 'the chat template leaves out the persona', persona_in='system')
    edit(folder / 'tokenizer_config.json', chat_template=PARTS_ONLY)
    refused(folder, 'the chat template (leaves out|cannot be used|rejects)')


def test_published_constructs_of_templates(tmp_path):
    """Hugging Face's tag around replies, and today's date, which stays the same from day to day."""
    folder = source(tmp_path / 'a')
    plain = ChatTemplate.load(imported(folder).tokenizer_path)
    start, rest = SMOLLM2.split("message['content']", 1)
    tagged = f"{{% generation %}}{start}message['content']{rest}{{% endgeneration %}}"
    edit(folder / 'tokenizer_config.json', chat_template=tagged)
    ours = ChatTemplate.load(imported(folder).tokenizer_path)
    assert ours.encode(('user',), 'Hi', Context()).ids
    dated = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + SMOLLM2
    edit(folder / 'tokenizer_config.json', chat_template=dated)
    model = imported(folder)
    ids = ChatTemplate.load(model.tokenizer_path).encode(('user',), 'Hi', Context()).ids
    assert 'Today: 26 Jul 2024' in plain.tokenizer.decode(list(ids))
    transformers = pytest.importorskip('transformers')
    theirs = transformers.AutoTokenizer.from_pretrained(model.tokenizer_path)
    assert list(ids) == theirs.apply_chat_template([dict(role='user', content='Hi')], return_dict=False)


def test_layouts_need_their_tokens(tmp_path):
    folder = source(tmp_path / 'a', 'llama2', eos_token_id=2)
    for layout in ('chatml', 'llama3'):
        refused(folder, 'ends replies with ordinary text, not with a special token', template=layout)
    edit(folder / 'tokenizer_config.json', eos_token=None)
    refused(folder, 'ends replies with ordinary text, not with a special token', template='inst')


HOSTILE = {
    'nested loops': '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}',
    'a power': '{{ 2 ** (10 ** 9) }}',
    'a repetition': "{{ 'a' * 3 * 10 ** 9 }}",
    'doubling': "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    'a number too long to print': '{{ 10 ** 9999 }}',
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_templates_end_in_time(kind, tmp_path):
    folder = source(tmp_path / 'a')
    edit(folder / 'tokenizer_config.json', chat_template=HOSTILE[kind] + SMOLLM2)
    began = time.monotonic()
    refused(folder, 'takes more than|rejects the turns')
    assert time.monotonic() - began < 300


# ---- Tokenizers ----


def test_tokens_of_other_files_have_the_ids_of_transformers(tmp_path):
    """In tokenizer_config.json or added_tokens.json alone; known to the vocabulary or not."""
    transformers = pytest.importorskip('transformers')
    for name in ('decoder', 'listed', 'in the vocabulary'):
        folder = source(tmp_path / name.replace(' ', '_'), spare=False)
        path = folder / 'tokenizer.json'
        description = json.loads(path.read_text())
        following = max(description['model']['vocab'].values()) + 1
        end = next(token for token in description['added_tokens'] if token['content'] == '<|im_end|>')
        description['added_tokens'].remove(end)
        if name != 'in the vocabulary':
            del description['model']['vocab']['<|im_end|>']
            description['model']['vocab']['<|other|>'] = end['id']
            end['id'] = following
        path.write_text(json.dumps(description))
        if name == 'listed':
            (folder / 'added_tokens.json').write_text(json.dumps({'<|im_end|>': following}))
        fields = {flag: value for flag, value in end.items() if flag != 'id'}
        decoder = {str(end['id']): fields}
        edit(folder / 'tokenizer_config.json', tokenizer_class='PreTrainedTokenizerFast', added_tokens_decoder=decoder)
        edit(folder / 'config.json', eos_token_id=end['id'])
        model = imported(folder)
        ours = ChatTemplate.load(model.tokenizer_path)
        chat = [dict(role='user', content='Hi'), dict(role='assistant', content='Hello')]
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ids = theirs.apply_chat_template(chat, return_dict=False)
        pieces = [
            *ours.encode(('user',), 'Hi', Context()).ids,
            *ours.generation_prompt(('user',), Context()),
            *ours.encode(('user', 'assistant'), 'Hello', Context()).ids,
        ]
        assert pieces == ids and ours.end_of_turn == end['id']


def test_contradictory_and_oversized_tokenizers(tmp_path):
    folder = source(tmp_path / 'a')
    decoder = {'7': dict(content='<|new|>', special=True)}
    edit(folder / 'tokenizer_config.json', added_tokens_decoder=decoder)
    refused(folder, r"gives the token '<\|new\|>' the id 7, but tokenizer.json implies the id")
    for broken in ({'x': {'content': 'a'}}, {'7': {}}, {'-1': {'content': 'a'}}, [1], {'7': {'content': 3}}):
        edit(folder / 'tokenizer_config.json', added_tokens_decoder=broken)
        refused(folder, 'has no text or no valid id')
    edit(folder / 'tokenizer_config.json', added_tokens_decoder=None)
    small = tiny_spec(vocab_size=300)
    write_folder(folder, small, random_params(small))
    refused(folder, r'the tokenizer has \d+ tokens, but the embedding has only 300')


def test_sentencepiece_with_added_tokens(tmp_path):
    transformers = pytest.importorskip('transformers')
    folder = source(tmp_path / 'a')
    (folder / 'tokenizer.json').unlink()
    texts = iter(['the cat sat on the mat'] * 50 + ['user assistant system'] * 50)
    with open(folder / 'tokenizer.model', 'wb') as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=file, vocab_size=300, hard_vocab_limit=False, model_type='bpe',
            byte_fallback=True, minloglevel=2, remove_extra_whitespaces=False, normalization_rule_name='identity',
        )  # fmt: skip
    first = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model')).vocab_size()
    added = {'<|im_start|>': first, '<|im_end|>': first + 1}
    (folder / 'added_tokens.json').write_text(json.dumps(added))
    flags = dict(lstrip=False, rstrip=False, normalized=False, single_word=False, special=True)
    decoder = {str(token): dict(content=text, **flags) for text, token in added.items()}
    edit(
        folder / 'tokenizer_config.json', tokenizer_class='LlamaTokenizer', legacy=False, added_tokens_decoder=decoder,
        add_bos_token=False, bos_token=None, eos_token='<|im_end|>', pad_token=None, unk_token='<unk>',
    )  # fmt: skip
    edit(folder / 'config.json', eos_token_id=first + 1)
    ours = ChatTemplate.load(imported(folder).tokenizer_path)
    assert ours.end_of_turn == first + 1 and ours.tokenizer.vocab_size == first + 2
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(('user',), 'the cat', Context()).ids
    assert ids[0] == first and ids.count(first + 1) == 1
    assert theirs.convert_tokens_to_ids('<|im_end|>') == first + 1
    assert first not in ours.encode(('user',), '<|im_start|>', Context()).ids[1:]


def test_a_token_with_a_huge_id_is_refused_in_time(tmp_path):
    folder = source(tmp_path / 'a')
    description = json.loads((folder / 'tokenizer.json').read_text())
    description['model']['vocab']['huge'] = 2**31
    (folder / 'tokenizer.json').write_text(json.dumps(description))
    refused(folder, 'tokens, but the embedding has only|takes more than|cannot be loaded')
    description['model']['vocab'].pop('huge')
    replace = dict(type='Replace', pattern=dict(Regex='(?s:.)'), content='x' * 1000)
    description['normalizer'] = dict(type='Sequence', normalizers=[replace] * 5)
    (folder / 'tokenizer.json').write_text(json.dumps(description))
    refused(folder, 'takes more than|cannot be loaded')
