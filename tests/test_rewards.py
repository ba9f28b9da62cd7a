"""Scores of candidates, and losses of pairs with margins, against one plain forward pass per reply."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny

from rlhi_jax.config import base_config
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.loader import RowReader
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities, stack
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import Interaction
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import describe_model, open_model, params_digest, save_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.scoring.pairs import pair_losses
from rlhi_jax.tokenizers.template import ChatTemplate, Context
from rlhi_jax.training.rows import check_pairs
from rlhi_jax.training.step import make_gradient

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


def records_with_margins() -> list[dict]:
    """Preferences of which many share trees; every third has no margin."""
    return [
        record | (dict(margin=0.4 * n, weight=1 + n / 8) if n % 3 else {})
        for n, record in enumerate(tiny.preferences(9, seed=2))
    ]


def records_with_ties() -> list[dict]:
    """The same preferences, but every fourth is a tie."""
    return [
        record | (dict(score_chosen=2, score_rejected=2) if n % 4 == 1 else {})
        for n, record in enumerate(records_with_margins())
    ]


def plain_losses(
    spec, params, template: ChatTemplate, records: list[dict], ties: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the pairs, and each pair's own, with one forward pass for each reply of each pair."""
    losses = {}
    for record in records:
        sides = []
        for side in ('chosen', 'rejected'):
            (reply,) = record[side]
            item = Candidates(record['id'], record['prompt'], record['persona'], [reply['content']])
            ids, _ = sequence(template, item, reply['content'], record['persona'])
            position = np.arange(len(ids))[None]
            hidden = Decoder(spec).apply({'params': params}, np.array([ids]), position, len(ids) - position)
            sides.append((hidden[0, -1] @ params['score'])[0])
        is_tie = 'score_chosen' in record
        gap = sides[0] - sides[1] - (0.0 if is_tie else record.get('margin', 0.0))
        better, worse = jax.numpy.exp(gap / 2), jax.numpy.exp(-gap / 2)
        said = ties if is_tie else better
        losses[record['id']] = -record.get('weight', 1.0) * jax.numpy.log(said / (better + worse + ties))
    return sum(losses.values()) / len(losses), losses


@pytest.mark.parametrize('ties', [0.0, 0.7])
def test_margins_and_ties_reach_the_loss_of_packed_rows(ties, tmp_path):
    """From records through trees on disk to rows; losses and gradients are those of plain sequences."""
    spec = dataclasses.replace(tiny.SPEC, head='reward')
    tiny.write_tokenizer(tmp_path / 'tokenizer')
    template = ChatTemplate.load(tmp_path / 'tokenizer')
    params = jax.device_get(nn.unbox(init_params(Decoder(spec), jax.random.key(1))))
    records = records_with_ties() if ties else records_with_margins()
    trees = grow_trees(map(tiny.parsed, records))
    assert max(len(tree.pairs) for tree in trees) > 1
    (tmp_path / 'shards').mkdir()
    write_shards(trees, tmp_path / 'shards', trees_per_shard=3, manifest={})
    shards = Shards(tmp_path / 'shards')
    assert [shards[i] for i in range(len(shards))] == trees
    reader = RowReader(make_plan(shards, template, Capacities(512, 256, 6)), shards, template)
    batch = stack([reader[row] for row in range(len(reader))])
    hyper, objective = base_config().reward.copy_and_resolve_references(), OBJECTIVES['reward']
    hyper.center, hyper.ties = 0.0, ties

    loss_BP, _ = pair_losses(Decoder(spec), objective, hyper, params, batch, chunk=64)
    (_, expected), plain = jax.value_and_grad(lambda p: plain_losses(spec, p, template, records, ties), has_aux=True)(
        params
    )
    names = [[reader.plan.pair_names[i] if i >= 0 else '' for i in row] for row in batch.pair_id_BP]
    wanted = [[expected.get(name, 0.0) for name in row] for row in names]
    np.testing.assert_allclose(loss_BP, wanted, rtol=2e-5, atol=2e-5)
    assert {name for row in names for name in row} - {''} == set(expected)
    grads, _ = make_gradient(Decoder(spec), objective, hyper, accumulate=1, chunk=64)(params, batch)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs) + 1e-7


def test_trees_without_margins_are_stored_as_before():
    """A stored pair has five fields, six with a margin, or eight if it is a tie."""
    for extra, fields in ((dict(margin=0.0), 5), (dict(margin=0.5), 6), (dict(score_chosen=1, score_rejected=1), 8)):
        (tree,) = grow_trees([tiny.parsed(dict(prompt='Hi', chosen='Hello', rejected='What?', **extra))])
        (stored,) = json.loads(tree.to_bytes())['pairs']
        assert len(stored) == fields and Interaction.from_bytes(tree.to_bytes()) == tree


def test_an_objective_that_ignores_margins_says_so(tmp_path):
    tiny.write_model(tmp_path / 'model')
    lines = [json.dumps(record) for record in records_with_margins()]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(lines))
    paths = dict(pairs='pairs.jsonl', shards='shards', rows='rows')
    flags = [f'--config={tiny.CONFIG}', f'--config.model.path={tmp_path / "model"}', '--config.train.max_steps=1']
    flags += [f'--config.data.{key}={tmp_path / name}' for key, name in paths.items()]
    for stage in ('shards', 'rows'):
        tiny.run_program(f'data_pipelines.{stage}', *flags)
    with_margin = sum('margin' in record for record in records_with_margins())
    note = f'config.objective: OBJECTIVE ignores the margins of {with_margin} pairs'
    for objective in ('dpo', 'reward'):
        settings = [f'--config.objective={objective}', f'--config.model.new_head={objective == "reward"}']
        done = tiny.run_program('rlhi_jax.train', *flags, *settings, f'--workdir={tmp_path / objective}')
        assert (note.replace('OBJECTIVE', objective) in done.stdout) == (objective == 'dpo')


def test_ties_are_refused_where_no_loss_reads_them(tmp_path):
    records = records_with_ties()
    (tmp_path / 'shards').mkdir()
    trees, tied = grow_trees(map(tiny.parsed, records)), sum('score_chosen' in record for record in records)
    write_shards(trees, tmp_path / 'shards', trees_per_shard=3, manifest=dict(counts=dict(pairs_tied=tied)))
    shards, c = Shards(tmp_path / 'shards'), base_config()
    for objective, words in (
        ('dpo', "are ties, from which config.objective='dpo' does not learn: rerun the stage shards with"),
        ('reward', 'set config.reward.ties to a number above 0, or rerun the stage shards'),
    ):
        c.objective = objective
        with pytest.raises(UserError, match=f'{tied} of the .*{words}'):
            check_pairs(shards, c)
    c.reward.ties = 1.0
    check_pairs(shards, c)
