"""Replies that users liked or disliked: from follow-ups to one-sided and hindsight pairs, and their losses in rows."""

import dataclasses
import json
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from data_pipelines import pairs
from data_pipelines.preferences.feedback import from_feedback
from data_pipelines.preferences.files import read_preferences
from data_pipelines.teacher.prompts import render
from rlhi_jax.config import base_config
from rlhi_jax.data.encode import Piece, TreeEncoder
from rlhi_jax.data.grow import grow_trees, preferences_of
from rlhi_jax.data.loader import RowReader
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities, stack
from rlhi_jax.data.shards import Shards, write_shards
from rlhi_jax.data.tree import NONE, Interaction
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.scoring.pairs import pair_losses, score_replies
from rlhi_jax.tokenizers.template import ChatTemplate, Context
from rlhi_jax.training.step import make_gradient

USER, EARLIER = 'u1', [dict(role='user', content='Hi'), dict(role='assistant', content='Hello')]


def replies() -> list[dict]:
    """Liked and disliked replies, at the first turn and later, some of them in one conversation."""
    records = []
    for n, (prompt, reply, label, follow_up) in enumerate(
        [
            ('A cat?', 'The cat sits.', False, 'Longer, please.'),
            ('A dog?', 'The dog runs quickly.', True, 'Thanks!'),
            ('A cat?', 'A small cat sings.', False, 'Without singing.'),
            ('Trees?', 'Big trees.', False, 'Say more.'),
        ]
    ):
        turns = [*(EARLIER if n % 2 else []), dict(role='user', content=prompt)]
        common = dict(id=f'r{n}', user_id=USER, persona='Likes cats.', prompt=turns)
        records.append(common | dict(completion=reply, label=label, follow_up=follow_up))
    return records


def read(tmp_path, feedback: str, records: list[dict]):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, records)))
    counts: Counter = Counter()
    return list(read_preferences([tmp_path / 'pairs.jsonl'], counts, feedback=feedback)), counts


def test_a_liked_reply_is_chosen_and_a_disliked_one_rejected(tmp_path):
    found, counts = read(tmp_path, 'one_sided', replies())
    assert [(p.id, bool(p.chosen), bool(p.rejected)) for p in found] == [
        ('r0', False, True), ('r1', True, False), ('r2', False, True), ('r3', False, True)
    ]  # fmt: skip
    assert found[1].chosen == (('assistant', 'The dog runs quickly.'),) and found[1].prompt[0] == ('user', 'Hi')
    assert counts == dict(lines_read=4, rated_replies_read=4, pairs_kept=4)


def test_hindsight_adds_the_follow_up_to_the_last_turn(tmp_path):
    found, counts = read(tmp_path, 'hindsight', [*replies(), dict(replies()[0], id='r4', follow_up=None)])
    assert counts['dropped_reply_without_a_follow_up'] == 1 and counts['pairs_kept'] == 4
    for preference, record in zip(found, replies(), strict=True):
        *before, (role, text) = preference.chosen_prompt
        assert tuple(before) == preference.prompt[:-1] and role == 'user'
        assert text == render('hindsight', request=record['prompt'][-1]['content'], follow_up=record['follow_up'])
        assert record['follow_up'] in text
        assert preference.chosen == preference.rejected == (('assistant', record['completion']),)


@pytest.mark.parametrize('feedback', ['one_sided', 'hindsight'])
def test_ratings_that_are_not_labels_are_counted(tmp_path, feedback):
    rated = dict(prompt='Hi', response='Hello', helpfulness=3, follow_up='Thanks')
    assert read(tmp_path, feedback, [rated])[1]['dropped_rating_is_not_a_label'] == 1


def test_a_pair_has_no_follow_up(tmp_path):
    pair = dict(prompt='Hi', chosen='Hello', rejected='No.')
    found, counts = read(tmp_path, 'hindsight', [pair])
    assert not found and counts['dropped_preference_without_a_follow_up'] == 1
    assert [each.id for each in read(tmp_path, 'one_sided', [pair])[0]] == ['pairs.jsonl:1']


def test_follow_ups_become_replies_with_labels(tmp_path):
    """The source reads three folders; a reaction is kept if it is feedback or confident thanks, in a mined split."""
    c = base_config()
    rows = [('train', True, 'reattempt_with_feedback', 0.9), ('train', False, 'positive_feedback', 0.9)]
    rows += [('train', False, 'positive_feedback', 0.1), ('test', True, 'reattempt_with_feedback', 0.9)]
    rows += [('validation', True, 'reattempt_with_feedback', 0.9)]
    records = dict(conversations=[], follow_ups=[], personas=[])
    for n, (split, mined, label, confidence) in enumerate(rows):
        texts = ['Bees?', 'Bees hum.', 'Longer.', 'Bees hum all day.']
        messages = [dict(role=('user', 'assistant')[i % 2], content=text) for i, text in enumerate(texts)]
        turn = dict(zip(('request', 'reply', 'follow_up'), texts, strict=False), label=label, confidence=confidence)
        turn |= dict(id=f'c{n}/2', conversation=f'c{n}', turn_index=2, user_id='u', split=split, mined=mined)
        records['conversations'].append(dict(id=f'c{n}', messages=messages))
        records['follow_ups'].append(turn)
        records['personas'] += [] if n == 4 else [dict(id=f'c{n}/0', persona='Likes bees.')]
    for name, content in records.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'records.jsonl').write_text(''.join(f'{json.dumps(record)}\n' for record in content))
        (tmp_path / name / 'manifest.json').write_text('{}')
        c.data[name] = str(tmp_path / name)
    c.pairs.sources, c.data.pairs = 'feedback', str(tmp_path / 'pairs')
    before = pairs.STAGE.made_from(c)
    c.follow_ups.min_confidence /= 2
    assert pairs.STAGE.made_from(c) != before  # another confidence may keep other thanks
    c.follow_ups.min_confidence *= 2
    counts: Counter = Counter()
    found = list(from_feedback(c, counts))
    assert [(reply['id'], reply['label']) for reply in found] == [('c0/2 reaction', False), ('c1/2 reaction', True)]
    assert found[0]['prompt'] == [dict(role='user', content='Bees?')] and found[0]['persona'] == 'Likes bees.'
    assert (
        found[0]['completion'] == [dict(role='assistant', content='Bees hum.')] and found[0]['follow_up'] == 'Longer.'
    )
    assert counts == dict(
        feedback_read=5, dropped_no_feedback=1, dropped_test_split=1, dropped_persona_would_know_it=1
    )  # fmt: skip


def plan_of(tmp_path, feedback: str, capacities: Capacities, records: list[dict] | None = None):
    preferences, _ = read(tmp_path, feedback, records or replies())
    trees = grow_trees(preferences)
    tiny.write_tokenizer(tmp_path / 'tokenizer')
    template = ChatTemplate.load(tmp_path / 'tokenizer')
    (tmp_path / 'shards').mkdir()
    write_shards(trees, tmp_path / 'shards', trees_per_shard=3, manifest={})
    shards = Shards(tmp_path / 'shards')
    assert [shards[i] for i in range(len(shards))] == trees
    assert grow_trees(each for tree in trees for each in preferences_of(tree)) == trees  # one-sided pairs, too
    reader = RowReader(make_plan(shards, template, capacities), shards, template)
    return preferences, template, reader, stack([reader[row] for row in range(len(reader))])


def token_logps(params, template: ChatTemplate, prompt, reply: str) -> jax.Array:
    """The log-probability of each scored token of a reply, computed from one plain sequence."""
    context, roles, ids = Context('', 'Likes cats.'), (), []
    for role, text in [*prompt, ('assistant', reply)]:
        if role == 'assistant':
            ids += template.generation_prompt(roles, context)
        roles = (*roles, role)
        encoded = template.encode(roles, text, context)
        ids += encoded.ids
    first = len(ids) - len(encoded.ids)
    position = np.arange(len(ids))[None]
    hidden = Decoder(tiny.SPEC).apply({'params': params}, np.array([ids]), position, len(ids) - position)[0]
    logp = jax.nn.log_softmax(hidden @ params['embed'].T, axis=-1)
    return jnp.stack([logp[i - 1, ids[i]] for i in range(first, first + encoded.scored)])


def hindsight_loss(params, template, preference) -> jax.Array:
    (_, reply), skip = preference.rejected[0], 2
    teacher = token_logps(params, template, preference.chosen_prompt, reply)
    policy = token_logps(params, template, preference.prompt, reply)
    return -(jax.lax.stop_gradient(teacher - policy) * policy)[skip:].mean()


def kto_loss(params, template, preferences) -> jax.Array:
    """The sum of the losses, under a reference that gives every reply 3 nats less than the first policy does."""
    ratios, signs = [], []
    for preference in preferences:
        ((_, reply),) = preference.chosen or preference.rejected
        logp = token_logps(params, template, preference.prompt, reply).sum()
        ratios.append(logp - jax.lax.stop_gradient(logp) + 3)
        signs.append(1 if preference.chosen else -1)
    ratio, sign = jnp.stack(ratios), jnp.array(signs)
    return (1 - jax.nn.sigmoid(sign * 0.1 * (ratio - 3))).sum()


@pytest.mark.parametrize('capacities', [Capacities(1024, 256, 4), Capacities(512, 64, 1)])
def test_hindsight_in_rows_equals_plain_sequences(tmp_path, capacities):
    params = nn.unbox(init_params(Decoder(tiny.SPEC), jax.random.key(0)))
    preferences, template, reader, batch = plan_of(tmp_path, 'hindsight', capacities)
    objective, hyper, decoder = OBJECTIVES['hindsight'], base_config().hindsight, Decoder(tiny.SPEC)
    loss_BP, _ = pair_losses(decoder, objective, hyper, params, batch, chunk=64)
    names = [[reader.plan.pair_names[i] if i >= 0 else '' for i in row] for row in batch.pair_id_BP]
    plain = {preference.id: hindsight_loss(params, template, preference) for preference in preferences}
    wanted = [[plain.get(name, 0.0) for name in row] for row in names]
    np.testing.assert_allclose(loss_BP, wanted, rtol=2e-5, atol=2e-5)
    assert {name for row in names for name in row} - {''} == set(plain)

    grads, _ = make_gradient(decoder, objective, hyper, accumulate=1, chunk=64)(params, batch)
    theirs = jax.grad(lambda p: sum(hindsight_loss(p, template, each) for each in preferences) / len(preferences))(
        params
    )
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other) + 1e-7


def test_a_shortened_context_starts_at_the_request_on_both_sides(tmp_path):
    params = nn.unbox(init_params(Decoder(tiny.SPEC), jax.random.key(0)))
    (preference,), template, reader, _ = plan_of(tmp_path / 'whole', 'hindsight', Capacities(512, 64, 1), replies()[3:])
    tokens = TreeEncoder(reader.trees[0], template).size(Piece(0, (0,))).tokens
    _, _, reader, batch = plan_of(tmp_path / 'cut', 'hindsight', Capacities(tokens - 1, 64, 1), replies()[3:])
    assert reader.plan.counts['pairs_with_shortened_context'] == 1
    shortened = dataclasses.replace(
        preference, prompt=preference.prompt[-1:], chosen_prompt=preference.chosen_prompt[-1:]
    )
    loss_BP, _ = pair_losses(
        Decoder(tiny.SPEC), OBJECTIVES['hindsight'], base_config().hindsight, params, batch, chunk=64
    )
    # The loss is a mean of small differences of log-probabilities of about 4 nats: `abs` is two of their roundings.
    expected = float(hindsight_loss(params, template, shortened))
    assert float(loss_BP[0, 0]) == pytest.approx(expected, rel=2e-5, abs=5e-7)


def test_one_sided_kto_in_rows_equals_plain_sequences(tmp_path):
    params = nn.unbox(init_params(Decoder(tiny.SPEC), jax.random.key(0)))
    preferences, template, reader, batch = plan_of(tmp_path, 'one_sided', Capacities(512, 256, 4))
    objective, hyper, decoder = OBJECTIVES['kto'], base_config().kto, Decoder(tiny.SPEC)
    sides = np.stack([batch.pair_chosen_BP, batch.pair_rejected_BP], -1)
    assert ((sides == NONE).sum(-1) == (batch.pair_id_BP >= 0)).all()  # each pair lacks one side
    reference = score_replies(decoder, params, batch, chunk=64).logp_BR - 3
    batch = batch._replace(reference_logp_BR=reference)
    grads, metrics = make_gradient(decoder, objective, hyper, accumulate=1, chunk=64)(params, batch)
    assert float(metrics['reference_point']) == pytest.approx(3, rel=1e-4)
    value, theirs = jax.value_and_grad(lambda p: kto_loss(p, template, preferences) / len(preferences))(params)
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-4)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other) + 1e-7


def test_a_piece_starts_at_the_request_with_and_without_the_follow_up(tmp_path):
    (preference,), _ = read(tmp_path, 'hindsight', replies()[:1])
    (tree,) = grow_trees([preference])
    assert [message.parent for message in tree.messages] == [-1, -1, 1, 0] and Interaction.from_bytes(
        tree.to_bytes()
    ) == tree
    tiny.write_tokenizer(tmp_path / 'tokenizer')
    encoder = TreeEncoder(tree, ChatTemplate.load(tmp_path / 'tokenizer'))
    tokens = encoder.encode(Piece(0, (0,)))
    assert sum(node.parent == -1 for node in tokens.nodes) == 2
    assert encoder.size(Piece(0, (0,))).tokens == sum(len(node.ids) for node in tokens.nodes)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Shards and rows of the same replies, keyed by `config.data.feedback`; the last two are of ordinary pairs."""
    folder = tmp_path_factory.mktemp('feedback')
    tiny.write_model(folder / 'model')
    (folder / 'replies.jsonl').write_text('\n'.join(map(json.dumps, replies())))
    (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, tiny.preferences(4))))
    flags = {}
    for feedback in ('one_sided', 'hindsight', 'paired', 'chosen'):
        paths = dict(
            pairs='pairs.jsonl' if feedback in ('paired', 'chosen') else 'replies.jsonl',
            shards=f'{feedback}/shards',
            rows=f'{feedback}/rows',
        )
        flags[feedback] = [
            f'--config={tiny.CONFIG}',
            f'--config.model.path={folder / "model"}',
            f'--config.data.feedback={feedback}',
        ]
        flags[feedback] += [f'--config.data.{key}={folder / name}' for key, name in paths.items()]
        for stage in ('shards', 'rows'):
            tiny.run_program(f'data_pipelines.{stage}', *flags[feedback])
    return folder, flags


@pytest.mark.parametrize(
    'objective, feedback',
    [('kto', 'one_sided'), ('kto', 'paired'), ('hindsight', 'hindsight'), ('simpo', 'paired'), ('reward', 'one_sided')],
)
def test_a_run_trains_and_is_evaluated(folders, objective, feedback):
    folder, flags = folders
    workdir = f'--workdir={folder / "runs" / f"{objective}-{feedback}"}'
    settings = [*flags[feedback], workdir, f'--config.objective={objective}', '--config.train.max_steps=2']
    settings += ['--config.model.new_head=True'] if objective == 'reward' else []
    tiny.run_program('rlhi_jax.train', *settings)
    shards = next(flag.split('=')[1] for flag in flags[feedback] if 'data.shards' in flag)
    tiny.run_program('rlhi_jax.evaluate', *settings, f'--config.eval.shards={shards}')
    assert list((folder / 'runs' / f'{objective}-{feedback}' / 'evaluation').glob('step-*.json'))


def test_sft_learns_the_same_without_rejected_replies(folders):
    """And computes fewer tokens. In one step, because the rows are not the same."""
    folder, flags = folders
    logs, tokens = {}, {}
    for feedback in ('paired', 'chosen'):
        workdir = folder / 'runs' / f'sft-{feedback}'
        given = (f'--workdir={workdir}', '--config.objective=sft', '--config.train.max_steps=1')
        tiny.run_program('rlhi_jax.train', *flags[feedback], *given)
        logs[feedback] = json.loads((workdir / 'metrics.jsonl').read_text())
        tokens[feedback] = json.loads((folder / feedback / 'rows' / 'manifest.json').read_text())['counts']['tokens']
    assert tokens['chosen'] < tokens['paired']
    for name in ('loss', 'gradient_norm', 'pairs', 'logp_chosen', 'length_chosen'):
        assert logs['chosen'][name] == pytest.approx(logs['paired'][name], rel=1e-5), name
    assert logs['chosen']['accuracy'] == logs['chosen']['margin'] == 0


@pytest.mark.parametrize(
    'objective, feedback, wanted',
    [
        ('dpo', 'one_sided', 'paired'),
        ('dpo', 'hindsight', 'paired'),
        ('kto', 'hindsight', 'one_sided'),
        ('hindsight', 'paired', 'hindsight'),
        ('sft', 'one_sided', 'chosen'),
        ('dpo', 'chosen', 'paired'),
    ],
)
def test_pairs_that_an_objective_cannot_use_are_refused(folders, objective, feedback, wanted):
    folder, flags = folders
    run = tiny.run_program(
        'rlhi_jax.train',
        *flags[feedback],
        f'--workdir={folder / "refused"}',
        f'--config.objective={objective}',
        check=False,
    )
    assert run.returncode and f'--config.data.feedback={wanted}' in run.stderr, run.stderr
    assert not (folder / 'refused').exists()
