"""Scores of candidates against one plain forward pass per reply."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny

from rlhi_jax.config import base_config
from rlhi_jax.data.rows import Capacities
from rlhi_jax.models.checkpoints import describe_model, open_model, params_digest, save_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.tokenizers.template import ChatTemplate, Context

ITEMS = [
    Candidates('a', [dict(role='user', content='Cats?')], 'Likes cats.', ['They purr.', 'No.', 'They purr.']),
    Candidates('b', [dict(role='user', content='Dogs?')], '', ['They bark.']),
    Candidates(
        'c',
        [dict(role=('user', 'assistant')[i % 2], content=f'turn {i}') for i in range(3)],
        'Likes turns.',
        ['One.', 'Two of them.', 'Three.', 'Four.', 'Five and more.'],
    ),
    Candidates('d', [dict(role='user', content='x' * 600)], '', ['Too long a prompt.', 'So it is.']),
]


@pytest.fixture(scope='module', params=['lm', 'reward'])
def model(request, tmp_path_factory):
    folder, spec = tmp_path_factory.mktemp('model'), dataclasses.replace(tiny.SPEC, head=request.param)
    tiny.write_tokenizer(folder / 'tokenizer')
    params = jax.device_get(nn.unbox(init_params(Decoder(spec), jax.random.key(1))))
    save_params(folder / 'params', params)
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    describe_model(folder, spec, weights=params_digest(params), tokens=tokens, source='tiny')
    return open_model(folder), params


def sequence(template: ChatTemplate, item: Candidates, reply: str, persona: str) -> tuple[list[int], range]:
    """The whole conversation as one sequence, and the indices of its reply's scored tokens."""
    context, roles, ids = Context('', persona), (), []
    for turn in [*item.messages, dict(role='assistant', content=reply)]:
        if turn['role'] == 'assistant':
            ids += template.generation_prompt(roles, context)
        roles = (*roles, turn['role'])
        encoded = template.encode(roles, turn['content'], context)
        ids += encoded.ids
    first = len(ids) - len(encoded.ids)
    return ids, range(first, first + encoded.scored)


def plain_score(spec, params, template: ChatTemplate, item: Candidates, reply: str, persona: str) -> float:
    """The reply's log-probability, or the reward at the last token."""
    ids, scored = sequence(template, item, reply, persona)
    tokens = np.array([ids])
    position = np.arange(len(ids))[None]
    hidden = Decoder(spec).apply({'params': params}, tokens, position, len(ids) - position)[0]
    if spec.head == 'reward':
        return float((hidden[-1] @ params['score'])[0])
    logp = jax.nn.log_softmax(hidden @ params['embed'].T, axis=-1)
    return float(sum(logp[i - 1, ids[i]] for i in scored))


@pytest.mark.parametrize('sees_persona', [True, False])
def test_scores_are_those_of_plain_sequences(model, sees_persona):
    folder, params = model
    c = base_config()
    c.model.dtype, c.model.logprob_chunk = 'float32', 64
    scorer = CandidateScorer(c, str(folder.path), Capacities(512, 256, 4), sees_persona=sees_persona)
    scores = scorer(ITEMS)
    template = ChatTemplate.load(folder.tokenizer_path)
    assert scores['d'] == [None, None]
    for item in ITEMS[:3]:
        persona = item.persona if sees_persona else ''
        expected = [plain_score(folder.spec, params, template, item, reply, persona) for reply in item.replies]
        np.testing.assert_allclose(scores[item.id], expected, rtol=2e-5, atol=2e-5)
    assert scores['a'][0] == pytest.approx(scores['a'][2], abs=1e-5) and scores['a'][0] != scores['a'][1]


def test_a_long_sibling_shortens_the_context_of_all(model):
    """Candidates of a prompt are scored after the same turns; one that does not fit a row leaves the others alone."""
    folder, params = model
    c = base_config()
    c.model.dtype, c.model.logprob_chunk = 'float32', 64
    turns = [dict(role=('user', 'assistant')[i % 2], content=f'turn {i} ' + 'says more ' * 6) for i in range(5)]
    replies = ['Short.', 'A longer one, ' * 12, 'x' * 400, 'Other.']
    template = ChatTemplate.load(folder.tokenizer_path)
    whole, shorter = (Candidates('e', turns[start:], 'Likes tea.', replies) for start in (0, 2))
    longest = len(sequence(template, shorter, replies[1], 'Likes tea.')[0])
    assert len(sequence(template, whole, replies[0], 'Likes tea.')[0]) < longest + 16
    scorer = CandidateScorer(c, str(folder.path), Capacities(longest + 16, 256, 4), sees_persona=True)
    scores = scorer([whole])['e']
    expected = [plain_score(folder.spec, params, template, shorter, text, 'Likes tea.') for text in replies]
    assert scores[2] is None
    for number in (0, 1, 3):
        assert scores[number] == pytest.approx(expected[number], rel=2e-5, abs=2e-5)
