"""The same numbers on every mesh, for any number of pairs in a row and any number of accumulation steps."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_config

from rlhi_jax.data.loader import RowReader, in_order
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities, capacities, stack
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.parameters import check_fit, load_params
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel.sharding import batch_sharding, make_mesh, on_mesh, to_global
from rlhi_jax.scoring.rows import RowScorer
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.model import make_decoder
from rlhi_jax.training.step import TrainState, learning_rate, make_gradient, make_optimizer, make_train_step

MESHES = {
    'data': dict(data=8, fsdp=1, tensor=1),
    'fsdp': dict(data=1, fsdp=8, tensor=1),
    'mixed': dict(data=2, fsdp=2, tensor=2),
}
ONE = dict(data=1, fsdp=1, tensor=1)
ROWS, ACCUMULATE = 32, 4
TOKENS, SCORED = 200, 128


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    tiny.prepare(folder, pairs=34)
    return folder


def config_of(folder, objective='dpo'):
    config = tiny_config.get_config(objective)
    config.model.path = str(folder / 'model')
    config.rows.tokens, config.rows.scored, config.rows.pairs = TOKENS, SCORED, 5
    return config


def reader_of(folder, config, *, one_pair_a_row=False) -> RowReader:
    template = ChatTemplate.load(folder / 'model' / 'tokenizer')

    def weigh(tree):
        weights = [(0.5, 1.0, 2.0)[int(digest(pair.id)[0], 16) % 3] for pair in tree.pairs]
        pairs = (dataclasses.replace(pair, weight=w) for pair, w in zip(tree.pairs, weights, strict=True))
        return dataclasses.replace(tree, pairs=tuple(pairs))

    shards = Shards(folder / 'shards')
    view = View(shards, range(len(shards)), weigh, 'weighed')
    limits = Capacities(TOKENS, SCORED, 1) if one_pair_a_row else capacities(config)
    return RowReader(make_plan(view, template, limits), view, template)


class Setting:
    """One mesh, one batch with reference log-probabilities computed on that mesh, and the functions of a step."""

    def __init__(self, folder, sizes, *, objective='dpo', one_pair_a_row=False, weighed=True):
        self.config = config_of(folder, objective)
        count = math.prod(sizes.values())
        self.mesh = make_mesh(sizes, jax.devices()[:count])
        self.model = open_model(folder / 'model')
        self.decoder = make_decoder(self.config, self.model)
        reader = reader_of(folder, self.config, one_pair_a_row=one_pair_a_row)
        rows = max(ROWS, len(reader.plan.rows))
        self.accumulate = ACCUMULATE if rows == ROWS else 1
        (order,) = in_order(range(len(reader.plan.rows)), rows)
        batch = stack([reader[row] for row in order])
        if not weighed:
            batch = batch._replace(pair_weight_BP=np.ones_like(batch.pair_weight_BP))
        with on_mesh(self.mesh):
            self.params = load_params(self.decoder, self.model, self.mesh, seed=0)
            if objective == 'dpo':
                ((scores),) = RowScorer(self.config, self.decoder, self.mesh)(self.params, reader, [order])
                batch = batch._replace(reference_logp_BR=scores)
            sharding = batch_sharding(self.mesh)
            self.batch = to_global(batch, list(range(rows)), sharding, rows)
            hyper = self.config[objective]
            self.gradient = make_gradient(
                self.decoder,
                OBJECTIVES[objective],
                hyper,
                accumulate=self.accumulate,
                chunk=self.config.model.logprob_chunk,
            )

    def gradients(self, params):
        with on_mesh(self.mesh):
            grads, metrics = jax.jit(self.gradient)(params, self.batch)
        return jax.device_get(grads), jax.device_get(metrics)

    def steps(self, params, count):
        """The gradient at `params` and the parameters' change after some steps from there, each on the same batch."""
        before = jax.device_get(params)
        optimizer = make_optimizer(self.config.optimizer, count)
        first = []

        def gradient(params, batch):
            grads, metrics = self.gradient(params, batch)
            return grads, metrics | {'gradient': grads}

        step = make_train_step(gradient, optimizer, learning_rate(self.config.optimizer, count))
        with on_mesh(self.mesh):
            state = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params))
            step = jax.jit(step)
            for _ in range(count):
                state, metrics = step(state, self.batch)
                first = first or jax.device_get(metrics['gradient'])
        return first, jax.tree.map(lambda after, b: np.asarray(after) - b, jax.device_get(state.params), before)


def relative_l2(a, b) -> dict[str, float]:
    leaves = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))
        for (path, x), y in leaves
    }


def moved(params):
    """Parameters away from the initial ones, where all log-ratios are 0 and the loss's curvature plays no part."""
    return jax.tree.map(lambda x: x * 1.05, params)


@pytest.fixture(scope='module')
def single(folder):
    setting = Setting(folder, ONE)
    return setting.steps(moved(setting.params), 5)


@pytest.mark.parametrize('name', MESHES)
def test_gradients_and_updates_are_those_of_one_device(folder, single, name):
    setting = Setting(folder, MESHES[name])
    gradient, updates = setting.steps(moved(setting.params), 5)
    distances = relative_l2(gradient, single[0])
    assert max(distances.values()) <= 1e-5, distances
    distances = relative_l2(updates, single[1])
    assert max(distances.values()) <= 1e-3, distances


@pytest.mark.parametrize('name', ['one', *MESHES])
def test_at_step_0_the_loss_is_log_2(folder, name):
    setting = Setting(folder, {'one': ONE, **MESHES}[name], weighed=False)
    _, metrics = setting.gradients(setting.params)
    assert abs(metrics['loss'] - math.log(2)) <= 1e-6
    assert abs(metrics['reward_chosen']) <= 1e-6 and abs(metrics['reward_rejected']) <= 1e-6


def test_unequal_pair_counts_give_the_unpacked_gradient(folder):
    packed = Setting(folder, MESHES['data'])
    unpacked = Setting(folder, ONE, one_pair_a_row=True)
    counts = (np.asarray(packed.batch.pair_id_BP) >= 0).sum(-1)
    assert packed.accumulate == 4 and len(set(counts.tolist())) > 2
    grads, metrics = packed.gradients(moved(packed.params))
    expected, expected_metrics = unpacked.gradients(moved(unpacked.params))
    assert metrics['pairs'] == expected_metrics['pairs']
    distances = relative_l2(grads, expected)
    assert max(distances.values()) <= 1e-5, distances
    np.testing.assert_allclose(metrics['loss'], expected_metrics['loss'], rtol=1e-5)


def test_parameters_are_split_as_the_rules_say(folder):
    params = Setting(folder, MESHES['mixed'], objective='reward').params
    shapes = {name: params['layers'][name].addressable_shards[0].data.shape for name in ('q', 'o', 'gate', 'down')}
    assert shapes == {'q': (2, 16, 4, 8), 'o': (2, 4, 8, 16), 'gate': (2, 16, 32), 'down': (2, 32, 16)}
    assert params['embed'].addressable_shards[0].data.shape == (132, 16)


SMOLLM2 = ModelSpec('llama', 49152, 576, 1536, 30, 9, 3, 64, 8192, tied_embeddings=True)


@pytest.mark.parametrize(
    ('sizes', 'rows', 'named'),
    [
        (dict(data=1, fsdp=1, tensor=8), 8, 'config.mesh.tensor is 8.*num_heads of 9'),
        (dict(data=1, fsdp=5, tensor=1), 5, 'config.mesh.fsdp is 5.*width of 576'),
        (dict(data=8, fsdp=1, tensor=1), 12, 'config.train.batch_rows'),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_by_name(sizes, rows, named):
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    with pytest.raises(UserError, match=named):
        check_fit(mesh, SMOLLM2, rows)


@pytest.mark.parametrize(
    ('sizes', 'named'),
    [
        (dict(data=3, fsdp=1, tensor=1), '8 devices'),
        (dict(data=-1, fsdp=-1, tensor=1), 'one may be -1'),
        (dict(data=0, fsdp=1, tensor=1), 'at least 1'),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, named):
    with pytest.raises(UserError, match=named):
        make_mesh(sizes)
