"""Reward models that are read at a token after the reply, against a tiny model of Athene's class in PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from import_sources import SPARE, edit, imported, refused, source

from rlhi_jax.config import base_config
from rlhi_jax.convert import export_model
from rlhi_jax.data.rows import Capacities
from rlhi_jax.data.tree import Preference
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.scoring.gaps import pair_gaps
from rlhi_jax.tokenizers.template import ChatTemplate

CLS = '<|reserved_special_token_1|>'
REPLIES = ['They purr.', 'No.', 'A much longer reply about cats, purring and sleep.']
CHATS = [[dict(role='user', content='Cats?'), dict(role='assistant', content=reply)] for reply in REPLIES]


def athene(folder: Path, cls: str | None = CLS) -> Path:
    """A tiny folder of Athene's class: the head is called v_head, and the tokenizer has the token CLS."""
    safetensors = pytest.importorskip('safetensors.numpy')
    folder = source(folder, 'llama3', 'reward')
    weights = safetensors.load_file(folder / 'model.safetensors')
    weights['v_head.weight'] = weights.pop('score.weight')
    safetensors.save_file(weights, folder / 'model.safetensors', metadata=dict(format='pt'))
    edit(folder / 'config.json', architectures=['AtheneForSequenceClassification'])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.add_special_tokens([CLS])
    tokenizer.save(str(folder / 'tokenizer.json'))
    edit(folder / 'tokenizer_config.json', cls_token=cls)
    return folder


def scored(model, persona: str) -> list[float]:
    c = settings()
    scorer = CandidateScorer(c, str(model.path), Capacities(512, 256, 4), sees_persona=True)
    return scorer([Candidates('a', CHATS[0][:1], persona, REPLIES)])['a']


def settings():
    c = base_config()
    c.model.dtype, c.model.logprob_chunk, c.rows.tokens, c.rows.scored = 'float32', 64, 512, 256
    return c


def test_rewards_are_those_of_the_class(tmp_path):
    """The class looks for the last CLS token in the ids, as the published code does."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    folder = athene(tmp_path / 'athene')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    backbone = transformers.LlamaModel.from_pretrained(folder, config=config, dtype=torch.float32)
    head = pytest.importorskip('safetensors.torch').load_file(folder / 'model.safetensors')['v_head.weight']
    cls = theirs.convert_tokens_to_ids(CLS)
    expected = []
    for chat in CHATS:
        text = theirs.apply_chat_template(chat, tokenize=False, date_string='26 Jul 2024') + theirs.cls_token
        ids = torch.tensor([theirs(text, add_special_tokens=False)['input_ids']])
        with torch.no_grad():
            rewards = backbone(ids).last_hidden_state @ head.T
        expected.append(rewards[0, (ids[0] == cls).nonzero()[-1]].item())
    model = imported(folder)
    np.testing.assert_allclose(scored(model, ''), expected, atol=2e-4)
    assert max(expected) - min(expected) > 1e-2


def test_the_exported_classifier_and_its_reimport_score_the_same(tmp_path):
    model = imported(athene(tmp_path / 'athene'))
    ours = scored(model, 'Likes cats.')
    export_model(model.path, tmp_path / 'exported', step=None, dtype='float32')
    again = imported(tmp_path / 'exported')
    assert ChatTemplate.load(again.tokenizer_path).reward_token == ChatTemplate.load(model.tokenizer_path).reward_token
    np.testing.assert_allclose(scored(again, 'Likes cats.'), ours, atol=1e-6)
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'exported')
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'exported', dtype='float32')
    texts = [theirs.apply_chat_template(chat, tokenize=False, persona='Likes cats.') for chat in CHATS]
    assert all(text.endswith(CLS) for text in texts)
    theirs.padding_side = 'right'
    with torch.no_grad():
        batch = theirs(texts, return_tensors='pt', padding=True, add_special_tokens=False)
        np.testing.assert_allclose(whole(**batch).logits[:, 0].tolist(), ours, atol=2e-4)


def test_later_turns_do_not_see_the_token(tmp_path):
    """One tree holds a rejected reply, the turns after it, and pairs of both; each reply scores as it does alone."""
    model = imported(athene(tmp_path / 'athene'))
    prompts = [(('user', 'Cats?'),), (('user', 'Cats?'), ('assistant', 'No.'), ('user', 'Why not?'))]
    sides = [('They purr.', 'No.'), ('Because.', 'They bite.')]
    preferences = [
        Preference(str(n), prompt, (('assistant', better),), (('assistant', worse),), '', 'Likes cats.', 'ann', 1.0)
        for n, (prompt, (better, worse)) in enumerate(zip(prompts, sides, strict=True))
    ]
    gaps = pair_gaps(settings(), model, dict(own=preferences), sees_persona=True)['own']
    scorer = CandidateScorer(settings(), str(model.path), Capacities(512, 256, 4), sees_persona=True)
    for p in preferences:
        messages = [dict(role=role, content=content) for role, content in p.prompt]
        one, two = scorer([Candidates(p.id, messages, p.persona, [p.chosen[0][1], p.rejected[0][1]])])[p.id]
        assert gaps[p.id] == pytest.approx(one - two, abs=1e-5)


def test_the_token_is_asked_for_and_checked(tmp_path):
    refused(athene(tmp_path / 'a', cls=None), 'has no cls_token: name the token with --reward_token=TOKEN')
    assert ChatTemplate.load(imported(tmp_path / 'a', reward_token=CLS).tokenizer_path).reward_token is not None
    reward = source(tmp_path / 'b', 'llama3', 'reward')
    refused(reward, r'--reward_token=<\|nothing\|> is not a special token', reward_token='<|nothing|>')
    plain = imported(reward)
    assert ChatTemplate.load(plain.tokenizer_path).reward_token is None
    at_the_end = scored(plain, '')
    read_at_spare = imported(reward, reward_token=SPARE)
    assert ChatTemplate.load(read_at_spare.tokenizer_path).last_of_reply != read_at_spare.tokens['pad_token_id']
    assert not np.allclose(scored(read_at_spare, ''), at_the_end)
    policy = source(tmp_path / 'c', 'llama3')
    refused(policy, 'applies to reward models only', reward_token=SPARE)
