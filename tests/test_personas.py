"""Each persona switch changes one thing alone, and evaluation's three conditions are what their names say."""

import dataclasses
import json
import math

import jax
import jinja2
import numpy as np
import pytest
import tiny
import tiny_config
import tokenizers

from rlhi_jax.data.shards import Shards
from rlhi_jax.data.tree import Interaction, Message, Pair
from rlhi_jax.evaluate import evaluate
from rlhi_jax.evaluation.conditions import other_personas, views
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.parameters import load_params
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.train import train
from rlhi_jax.training.model import make_decoder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    flags = tiny.prepare(folder, pairs=10)
    lines = [json.loads(line) | {'persona': ''} for line in (folder / 'pairs.jsonl').read_text().splitlines()]
    (folder / 'stripped.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    stripped = [f'--config.data.shards={folder / "stripped"}', f'--config.data.rows={folder / "stripped_rows"}']
    tiny.run_program('data_pipelines.shards', *flags, f'--config.data.pairs={folder / "stripped.jsonl"}', *stripped)
    tiny.run_program('data_pipelines.rows', *flags, *stripped)
    return folder


def first_metrics(folder, workdir, objective, *, stripped=False, **switches):
    """Metrics of the first step of a run, before any update."""
    config = tiny_config.get_config(objective)
    config.model.path = str(folder / 'model')
    config.data.shards = str(folder / ('stripped' if stripped else 'shards'))
    config.data.rows = str(folder / ('stripped_rows' if stripped else 'rows'))
    config.train.max_steps = 1
    config.update(switches)
    train(config, workdir)
    (line,) = (workdir / 'metrics.jsonl').read_text().splitlines()
    return json.loads(line)


def test_ref_sees_persona_changes_the_reference_alone(folder, tmp_path):
    both = first_metrics(folder, tmp_path / 'both', 'dpo')
    blind = first_metrics(folder, tmp_path / 'blind', 'dpo', ref_sees_persona=False)
    other = first_metrics(folder, tmp_path / 'other', 'dpo', rm_sees_persona=False)
    assert other == both
    for name in ('logp_chosen', 'logp_rejected', 'length_chosen', 'length_rejected', 'pairs'):
        assert blind[name] == both[name]
    assert abs(both['loss'] - math.log(2)) <= 1e-6
    # The blind reference gives the log-probabilities of a policy that never saw a persona.
    stripped = first_metrics(folder, tmp_path / 'stripped', 'dpo', stripped=True)
    assert abs(blind['reward_chosen']) > 1e-4
    for side in ('chosen', 'rejected'):
        expected = 0.1 * (both[f'logp_{side}'] - stripped[f'logp_{side}'])
        assert math.isclose(blind[f'reward_{side}'], expected, rel_tol=1e-3, abs_tol=1e-5)


def test_rm_sees_persona_changes_what_the_reward_model_reads(folder, tmp_path):
    sees = first_metrics(folder, tmp_path / 'sees', 'reward')
    blind = first_metrics(folder, tmp_path / 'blind', 'reward', rm_sees_persona=False)
    other = first_metrics(folder, tmp_path / 'other', 'reward', ref_sees_persona=False)
    stripped = first_metrics(folder, tmp_path / 'stripped', 'reward', stripped=True)
    assert other == sees
    assert abs(sees['reward_chosen'] - blind['reward_chosen']) > 1e-4
    for name in ('loss', 'reward_chosen', 'reward_rejected', 'margin'):
        assert math.isclose(blind[name], stripped[name], rel_tol=1e-4, abs_tol=1e-6)


@pytest.mark.parametrize('step', [None, 0])
def test_evaluation_agrees_with_scoring_each_conversation_alone(folder, tmp_path, step):
    config = tiny_config.get_config('reward')
    config.model.path = str(folder / 'model')
    config.data.shards, config.data.rows = str(folder / 'shards'), str(folder / 'rows')
    config.eval.shards = str(folder / 'shards')
    config.train.max_steps = 2
    train(config, tmp_path)
    result = evaluate(config, tmp_path, step)
    assert result['step'] == (1 if step is None else 0)

    config.model.new_head = step == 0  # before training: the model itself, with a head drawn from the seed
    model = open_model(tmp_path if step is None else config.model.path)
    decoder = make_decoder(config, model)
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    params = jax.device_get(load_params(decoder, model, mesh, seed=config.seed))
    shards = Shards(folder / 'shards')
    trees = map(shards.__getitem__, range(len(shards)))
    others = other_personas(((tree.user_id, tree.persona) for tree in trees), config.eval.shuffle_seed)

    @jax.jit
    def rewards(tokens):
        steps = np.arange(tokens.shape[1])[None]
        return (decoder.apply({'params': params}, tokens, steps, tokens.shape[1] - steps) @ params['score'])[0, :, 0]

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    chat = environment.from_string((model.tokenizer_path / 'chat_template.jinja').read_text(encoding='utf-8'))
    tokenizer = tokenizers.Tokenizer.from_file(str(model.tokenizer_path / 'tokenizer.json'))

    def reward(tree, node, persona):
        messages = [dict(role=tree.messages[m].role, content=tree.messages[m].content) for m in tree.path(node)]
        ids = tokenizer.encode(chat.render(messages=messages, persona=persona), add_special_tokens=False).ids
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(ids)] = ids
        return float(rewards(padded)[len(ids) - 1])

    right = {'own': 0, 'other': 0, 'empty': 0}
    total = 0
    for i in range(len(shards)):
        tree = shards[i]
        personas = {'own': tree.persona, 'other': others[tree.user_id], 'empty': ''}
        for pair in tree.pairs:
            total += 1
            for name, persona in personas.items():
                right[name] += reward(tree, pair.chosen, persona) > reward(tree, pair.rejected, persona)
    assert result['pairs'] == total
    for name, count in right.items():
        assert math.isclose(result['conditions'][name]['accuracy']['mean'], count / total, abs_tol=1e-9)


def tree(user, persona, name):
    messages = (Message(-1, 'user', name), Message(0, 'assistant', 'a'), Message(0, 'assistant', 'b'))
    return Interaction(name, messages, (Pair(name, 0, 1, 2),), user, persona)


class Trees(list):
    folder, digest = 'trees', 'd'


def test_another_users_persona_is_not_ones_own():
    trees = Trees(tree(f'u{i % 5}', f'persona {i % 5}', f't{i}') for i in range(20))
    others = other_personas(((tree.user_id, tree.persona) for tree in trees), 0)
    assert sorted(others) == [f'u{i}' for i in range(5)]
    assert sorted(others.values()) == [f'persona {i}' for i in range(5)]
    assert all(persona[-1] != user[-1] for user, persona in others.items())
    by_condition = views(trees, max_trees=7, seed=0)
    assert [len(view) for view in by_condition.values()] == [7, 7, 7]
    for i in range(7):
        interaction = by_condition['own'][i]
        assert by_condition['empty'][i] == dataclasses.replace(interaction, persona='')
        assert by_condition['other'][i] == dataclasses.replace(interaction, persona=others[interaction.user_id])


def test_one_persona_for_all_is_compared_with_none():
    trees = [*(tree(f'u{i}', 'the same', f't{i}') for i in range(4)), tree('u4', '', 't4')]
    found = views(Trees(trees), max_trees=0, seed=0)
    assert list(found) == ['own', 'empty'] and len(found['own']) == 4
    assert {found['own'][i].persona for i in range(4)} == {'the same'}
    assert {found['empty'][i].persona for i in range(4)} == {''}


def test_the_interval_resamples_users():
    rng = np.random.default_rng(0)
    users = {f'{u}-{i}': f'u{u}' for u in range(40) for i in range(25)}
    effect = dict(zip([f'u{u}' for u in range(40)], rng.normal(size=40), strict=True))
    values = {pair: effect[user] for pair, user in users.items()}
    result = interval(values, users)
    error = np.std(list(effect.values()), ddof=1) / math.sqrt(40)  # users, not pairs, are independent
    assert math.isclose(result['mean'], np.mean(list(effect.values())), rel_tol=1e-9)
    assert math.isclose(result['high'] - result['low'], 2 * 1.96 * error, rel_tol=0.15)
