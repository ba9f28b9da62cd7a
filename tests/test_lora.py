"""Adapters of a frozen base: their gradients, their folders, and their exchange with the package `peft`."""

import dataclasses
import math
import os
import shutil

os.environ['HF_HUB_OFFLINE'] = '1'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
import tiny_config  # noqa: E402
from conversion_models import our_output  # noqa: E402
from test_meshes import MESHES, ONE, reader_of, relative_l2  # noqa: E402

from rlhi_jax.config import check_config  # noqa: E402
from rlhi_jax.convert import export_adapters, export_model, import_adapters  # noqa: E402
from rlhi_jax.data.loader import in_order  # noqa: E402
from rlhi_jax.data.rows import Capacities, stack  # noqa: E402
from rlhi_jax.evaluate import evaluate  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402
from rlhi_jax.io.files import file_digest, read_json, write_json  # noqa: E402
from rlhi_jax.models.checkpoints import open_model  # noqa: E402
from rlhi_jax.models.decoder import Decoder  # noqa: E402
from rlhi_jax.models.lora import MATRICES, Lora, lora_of  # noqa: E402
from rlhi_jax.models.parameters import load_params, load_trained, split_params  # noqa: E402
from rlhi_jax.objectives import OBJECTIVES  # noqa: E402
from rlhi_jax.parallel.sharding import batch_sharding, make_mesh, on_mesh, to_global  # noqa: E402
from rlhi_jax.sampling.generator import Generator, Prompt  # noqa: E402
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer  # noqa: E402
from rlhi_jax.scoring.pairs import pair_losses  # noqa: E402
from rlhi_jax.scoring.rows import RowScorer  # noqa: E402
from rlhi_jax.train import train  # noqa: E402
from rlhi_jax.training.model import make_decoder, with_adapters  # noqa: E402
from rlhi_jax.training.step import TrainState, jit_train_step, make_gradient, make_optimizer  # noqa: E402

ROWS, RANK, ALPHA = 16, 4, 6.0
LAST = 3  # step of a run
DEVICES = jax.devices()


@pytest.fixture(scope='module', autouse=True)
def programs_use_one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda *args: DEVICES[:1])
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lora')
    tiny.prepare(folder, pairs=24)
    return folder


def config_of(folder, objective='dpo', **lora):
    c = tiny_config.get_config(objective)
    c.model.path, c.data.shards, c.data.rows = (str(folder / name) for name in ('model', 'shards', 'rows'))
    c.eval.shards = c.data.shards
    c.lora.rank, c.lora.alpha = RANK, ALPHA
    c.lora.update(lora)
    c.train.batch_rows, c.train.max_steps, c.checkpoint.every_steps = 2, LAST, 1
    return check_config(c)


class Setting:
    """One mesh, one batch, and the frozen and the trained parameters of a decoder with adapters."""

    def __init__(self, folder, sizes=ONE, objective='dpo', **lora):
        self.config = config_of(folder, objective, **lora)
        self.config.rows.tokens, self.config.rows.scored, self.config.rows.pairs = 200, 128, 5
        self.mesh = make_mesh(sizes, DEVICES[: math.prod(sizes.values())])
        self.model = open_model(folder / 'model')
        self.plain = make_decoder(self.config, self.model)
        self.decoder = with_adapters(self.plain, self.config)
        reader = reader_of(folder, self.config)
        (order,) = in_order(range(len(reader.plan.rows)), ROWS)
        self.in_step = self.config.lora.reference == 'in_step'
        with on_mesh(self.mesh):
            params = load_params(self.decoder, self.model, self.mesh, seed=0)
            self.trained, self.frozen = split_params(self.decoder, params)
            batch = stack([reader[row] for row in order])
            batch = batch._replace(pair_weight_BP=np.ones_like(batch.pair_weight_BP))
            if objective == 'dpo' and not self.in_step:
                ((scores),) = RowScorer(self.config, self.decoder, self.mesh)(self.frozen, reader, [order])
                batch = batch._replace(reference_logp_BR=scores)
            self.batch = to_global(batch, list(range(ROWS)), batch_sharding(self.mesh), ROWS)

    def gradients(self, trained):
        hyper, chunk = self.config[self.config.objective], self.config.model.logprob_chunk
        gradient = make_gradient(
            self.decoder,
            OBJECTIVES[self.config.objective],
            hyper,
            accumulate=2,
            chunk=chunk,
            reference_in_step=self.in_step,
        )
        with on_mesh(self.mesh):
            return jax.device_get(jax.jit(gradient)(trained, self.batch, self.frozen))

    def moved(self):
        """Trained parameters in which no B is zero."""
        leaves, treedef = jax.tree.flatten(self.trained)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noise = [0.05 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.map(jnp.add, self.trained, jax.tree.unflatten(treedef, noise))


def merged(frozen, trained, lora, plus=jnp.add):
    """The parameters W + s A B of the plain decoder, written out for each matrix."""
    matrices = dict(
        q='LDR,LRNH->LDNH', k='LDR,LRNH->LDNH', v='LDR,LRNH->LDNH', o='LNHR,LRD->LNHD',
        gate='LDR,LRF->LDF', up='LDR,LRF->LDF', down='LFR,LRD->LFD',
    )  # fmt: skip
    adapters, layers = trained['adapters']['layers'], dict(frozen['layers'])
    for name in lora.targets:
        product = jnp.einsum(matrices[name], adapters[f'{name}_a'], adapters[f'{name}_b'], precision='highest')
        layers[name] = layers[name].astype(jnp.float32) + lora.alpha / lora.rank * product
    return frozen | {name: value for name, value in trained.items() if name != 'adapters'} | {'layers': layers}


@pytest.mark.parametrize('name', ['one', *MESHES])
def test_at_step_0_the_loss_is_log_2(folder, name):
    setting = Setting(folder, {'one': ONE, **MESHES}[name])
    _, metrics = setting.gradients(setting.trained)
    assert abs(metrics['loss'] - math.log(2)) <= 1e-6
    assert abs(metrics['reward_chosen']) <= 1e-6 and abs(metrics['reward_rejected']) <= 1e-6


def test_the_step_itself_can_compute_the_reference(folder):
    cached, in_step = Setting(folder), Setting(folder, MESHES['mixed'], reference='in_step')
    _, metrics = in_step.gradients(in_step.trained)
    assert abs(metrics['loss'] - math.log(2)) <= 1e-6
    grads, metrics = in_step.gradients(in_step.moved())
    expected, expected_metrics = cached.gradients(cached.moved())
    np.testing.assert_allclose(metrics['loss'], expected_metrics['loss'], rtol=1e-5)
    assert max(relative_l2(grads, expected).values()) <= 1e-5


@pytest.mark.parametrize('name', ['fsdp', 'mixed'])
def test_gradients_are_those_of_one_device(folder, name):
    one, many = Setting(folder), Setting(folder, MESHES[name])
    distances = relative_l2(many.gradients(many.moved())[0], one.gradients(one.moved())[0])
    assert max(distances.values()) <= 1e-5, distances


def test_adapters_are_split_like_the_base(folder):
    layers = Setting(folder, MESHES['mixed']).trained['adapters']['layers']
    shapes = {name: layers[name].addressable_shards[0].data.shape for name in layers}
    assert shapes['q_a'] == (2, 16, RANK) and shapes['q_b'] == (2, RANK, 4, 8)
    assert shapes['o_a'] == (2, 4, 8, RANK) and shapes['o_b'] == (2, RANK, 16)
    assert shapes['down_a'] == (2, 32, RANK) and shapes['down_b'] == (2, RANK, 16)


def test_at_first_only_b_has_a_gradient(folder):
    setting = Setting(folder)
    grads, _ = setting.gradients(setting.trained)
    layers = grads['adapters']['layers']
    assert grads.keys() == {'adapters'} and layers.keys() == {f'{name}_{part}' for name in MATRICES for part in 'ab'}
    for name in MATRICES:
        assert np.all(np.linalg.norm(layers[f'{name}_b'].reshape(2, -1), axis=1) > 0), name
        assert not layers[f'{name}_a'].any(), name
    config, mesh = setting.config, setting.mesh
    with on_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, 2)
        state = TrainState(jnp.int32(0), setting.trained, jax.jit(optimizer.init)(setting.trained))
        state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.P()))
        step = jit_train_step(config, setting.decoder, state, mesh, 2)
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        sizes = sum(leaf.size for leaf in jax.tree.leaves(setting.trained))
        assert sum(leaf.size for leaf in moments) == 2 * sizes
        state, _ = step(state, setting.batch, setting.frozen)
    after = setting.gradients(state.params)[0]['adapters']['layers']
    assert all(np.linalg.norm(after[f'{name}_a']) > 0 for name in MATRICES)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(setting.frozen))


def test_a_begins_like_a_linear_layer_of_torch(folder):
    layers = Setting(folder).trained['adapters']['layers']
    for name, inputs in dict(q=32, o=64, down=64).items():
        values = np.asarray(layers[f'{name}_a'])
        assert np.abs(values).max() <= inputs**-0.5 and np.abs(values).max() > 0.9 * inputs**-0.5
        assert np.isclose(values.std(), inputs**-0.5 / math.sqrt(3), rtol=0.1)
        assert not np.array_equal(values[0], values[1])
        assert not np.asarray(layers[f'{name}_b']).any()


@pytest.mark.parametrize(
    ('remat', 'base_dtype'),
    [
        ('save_all', 'bfloat16'),
        ('save_dots', 'bfloat16'),
        ('save_dots', 'float32'),
        ('save_attention', 'float32'),
        ('save_nothing', 'bfloat16'),
    ],
)
def test_gradients_are_those_of_the_merged_formula(folder, remat, base_dtype):
    setting = Setting(folder, targets='layers/(q|o|up|down)', base_dtype=base_dtype)
    setting.decoder = setting.decoder.clone(remat=remat)
    trained, lora = setting.moved(), setting.decoder.lora
    frozen = jax.tree.map(lambda x: x.astype(jnp.float32), setting.frozen)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(setting.frozen)} == {base_dtype}

    def loss(trained):
        how = OBJECTIVES['dpo'], setting.config.dpo
        loss_BP, _ = pair_losses(setting.plain, *how, merged(frozen, trained, lora), setting.batch, chunk=64)
        return loss_BP.sum() / (setting.batch.pair_id_BP >= 0).sum()

    with on_mesh(setting.mesh):
        value, expected = jax.jit(jax.value_and_grad(loss))(trained)
    grads, metrics = setting.gradients(trained)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)
    distances = relative_l2(grads, jax.device_get(expected))
    assert max(distances.values()) <= 1e-5, distances


def test_targets(folder):
    settings = config_of(folder).lora
    assert lora_of(settings) == Lora(RANK, ALPHA, MATRICES)
    assert config_of(folder, targets='layers/(v|q)').lora and lora_of(settings).scale == ALPHA / RANK
    with pytest.raises(UserError, match='config.lora.targets.*matches no parameters: match one of layers/q, layers/k'):
        config_of(folder, targets='q_proj')
    with pytest.raises(UserError, match='config.lora.targets.*not a regular expression'):
        config_of(folder, targets='layers/(q')
    assert lora_of(config_of(folder, rank=0).lora) is None


def test_a_reference_with_rows_of_its_own_is_cached(folder):
    config = config_of(folder, reference='in_step')
    config.ref_sees_persona = False
    with pytest.raises(UserError, match="config.ref_sees_persona.*config.lora.reference='cached'"):
        check_config(config)


def files_of(folder):
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def trained(folder):
    """The workdir of a finished run with adapters; the base's files are unchanged."""
    before = files_of(folder / 'model')
    assert train(_keeping(config_of(folder)), folder / 'run')
    assert files_of(folder / 'model') == before
    return folder / 'run'


def _keeping(config):
    config.checkpoint.keep = 10
    return config


def saved(workdir, step, item):
    """The arrays of a checkpoint, read without our code."""
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(checkpointer.restore((workdir / 'checkpoints' / str(step) / item).absolute()))


def test_a_checkpoint_holds_the_adapters_alone(trained):
    params = saved(trained, LAST, 'params')
    assert params.keys() == {'adapters'} and len(params['adapters']['layers']) == 14
    assert all(np.abs(values).max() > 0 for values in params['adapters']['layers'].values())
    described = read_json(trained / 'model.json', '')['base']
    assert described['weights'] == open_model(trained.parent / 'model').weights and described['step'] is None
    assert described['lora'] == dict(rank=RANK, alpha=ALPHA, targets=list(MATRICES))


@pytest.mark.parametrize('reference', ['cached', 'in_step'])
def test_a_resumed_run_ends_in_the_same_bytes(folder, trained, reference, tmp_path):
    config = _keeping(config_of(folder, reference=reference, base_dtype='bfloat16'))
    assert train(config, tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'resumed')
    for step in (2, LAST):
        shutil.rmtree(tmp_path / 'resumed' / 'checkpoints' / str(step))
    assert train(config, tmp_path / 'resumed')
    for item in ('params', 'optimizer'):
        whole, resumed = (jax.tree.leaves(saved(tmp_path / name, LAST, item)) for name in ('whole', 'resumed'))
        assert [np.asarray(leaf).tobytes() for leaf in whole] == [np.asarray(leaf).tobytes() for leaf in resumed]
    assert (tmp_path / 'whole' / 'reference').exists() == (reference == 'cached')


def loaded(path, **options):
    model = open_model(path, **options)
    mesh = make_mesh(ONE)
    return jax.device_get(load_params(Decoder(model.spec), model, mesh, seed=0)), model


def test_an_opened_model_is_merged(folder, trained):
    params, model = loaded(trained)
    base, _ = loaded(folder / 'model')
    expected = merged(base, saved(trained, LAST, 'params'), model.lora)
    for name in MATRICES:
        np.testing.assert_allclose(params['layers'][name], expected['layers'][name], rtol=1e-6, atol=1e-7)
    assert params.keys() == base.keys() and np.array_equal(params['embed'], base['embed'])
    unmerged = base | saved(trained, LAST, 'params')
    decoder = Decoder(model.spec, lora=model.lora)
    ids = np.random.default_rng(0).integers(4, 96, (2, 24))
    position_BT = jnp.tile(jnp.arange(24), (2, 1))
    variables = {'params': base, 'adapters': unmerged['adapters']}
    hidden_BTD = decoder.apply(variables, ids, position_BT, 24 - position_BT)
    logits = np.asarray(hidden_BTD @ base['embed'].T)
    assert np.abs(logits - our_output(params, model.spec, ids)).max() <= 1e-4
    assert np.abs(logits - our_output(base, model.spec, ids)).max() > 1e-3


def test_a_run_is_a_model_everywhere(folder, trained, tmp_path):
    config = config_of(folder)
    result = evaluate(config, trained, None)
    assert result['step'] == LAST and result['model'] == open_model(trained).weights
    export_model(trained, tmp_path / 'hf', step=None, dtype='float32')
    assert (tmp_path / 'hf' / 'model.safetensors').exists()
    config.sampler.slots, config.sampler.prompt_tokens, config.sampler.new_tokens = 2, 64, 8
    (reply,) = Generator.open(config, str(trained)).replies([Prompt('a', (('user', 'the cat'),))])
    scorer = CandidateScorer(config, str(trained), Capacities(200, 128, 2), sees_persona=True)
    scores = scorer([Candidates('a', [dict(role='user', content='the cat')], '', ['sits', 'runs'])])
    assert reply.id == 'a' and all(math.isfinite(score) for score in scores['a'])


def test_a_next_run_starts_from_the_merged_model(folder, trained):
    config = config_of(folder, rank=2)
    config.model.path = str(trained)
    assert train(config, folder / 'next')
    params, model = loaded(folder / 'next')
    assert model.base.lora.rank == RANK and model.lora.rank == 2 and model.base.step == LAST
    before, _ = loaded(trained)
    assert 0 < np.abs(params['layers']['q'] - before['layers']['q']).max() < 0.1


def test_another_run_is_refused_by_setting(folder, trained):
    for changed, named in ((config_of(folder, rank=2), 'lora.rank'), (config_of(folder, rank=0), r'lora\.')):
        with pytest.raises(UserError, match=f'different config.{named}'):
            train(changed, trained)


def test_a_changed_or_missing_base_is_refused(folder, trained, tmp_path):
    shutil.copytree(folder / 'model', tmp_path / 'model')
    shutil.copytree(trained, tmp_path / 'run')
    described = read_json(tmp_path / 'run' / 'model.json', '')
    described['base']['path'] = str(tmp_path / 'model')
    write_json(tmp_path / 'run' / 'model.json', described)
    assert open_model(tmp_path / 'run').base.path == tmp_path / 'model'
    changed = read_json(tmp_path / 'model' / 'model.json', '') | dict(weights='0123')
    write_json(tmp_path / 'model' / 'model.json', changed)
    weights = described['base']['weights']
    with pytest.raises(UserError, match=f'{tmp_path}/run contains .*{tmp_path}/model with weights {weights}.*0123'):
        open_model(tmp_path / 'run')
    shutil.rmtree(tmp_path / 'model')
    with pytest.raises(UserError, match=f'{tmp_path}/model with weights .*cannot be opened'):
        open_model(tmp_path / 'run')


def test_a_new_head_is_trained_with_the_adapters(folder):
    setting = Setting(folder, objective='reward')
    grads, _ = setting.gradients(setting.trained)
    assert grads.keys() == {'adapters', 'score'} and np.linalg.norm(grads['score']) > 0
    assert 'score' not in setting.frozen and 'unembed' not in setting.frozen
    assert train(config_of(folder, 'reward'), folder / 'reward')
    params, model = loaded(folder / 'reward')
    assert model.spec.head == 'reward' and saved(folder / 'reward', LAST, 'params').keys() == {'adapters', 'score'}
    first = jax.device_get(setting.trained['score'])
    assert np.array_equal(params['score'], saved(folder / 'reward', LAST, 'params')['score'])
    assert 0 < np.abs(params['score'] - first).max() < 0.1


@pytest.fixture(scope='module')
def libraries():
    torch = pytest.importorskip('torch')
    return torch, pytest.importorskip('transformers'), pytest.importorskip('peft')


def exported(model, to):
    export_model(model, to / 'base', step=None, dtype='float32')
    return to / 'base'


def test_peft_computes_the_same(folder, trained, libraries, tmp_path):
    torch, transformers, peft = libraries
    base = transformers.AutoModelForCausalLM.from_pretrained(exported(folder / 'model', tmp_path))
    export_adapters(trained, tmp_path / 'peft', step=None, dtype='float32')
    model = peft.PeftModel.from_pretrained(base, tmp_path / 'peft').eval()
    ids = np.random.default_rng(0).integers(4, 96, (2, 24))
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    params, ours = loaded(trained)
    assert np.abs(theirs - our_output(params, ours.spec, ids)).max() <= 1e-4
    begun, _ = loaded(folder / 'model')
    assert np.abs(theirs - our_output(begun, ours.spec, ids)).max() > 1e-3


def test_peft_computes_the_same_rewards(folder, libraries, tmp_path):
    torch, transformers, peft = libraries
    if not (folder / 'reward').exists():
        assert train(config_of(folder, 'reward'), folder / 'reward')
    export_adapters(folder / 'reward', tmp_path / 'peft', step=None, dtype='float32')
    kind = transformers.AutoModelForSequenceClassification
    base = kind.from_pretrained(exported(folder / 'model', tmp_path), num_labels=1)
    model = peft.PeftModel.from_pretrained(base, tmp_path / 'peft').eval()
    ids = np.random.default_rng(0).integers(4, 96, (2, 24))
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    params, ours = loaded(folder / 'reward')
    assert np.abs(theirs - our_output(params, ours.spec, ids)).max() <= 1e-4


def test_an_exported_adapter_is_imported_again(folder, trained, tmp_path):
    export_adapters(trained, tmp_path / 'peft', step=None, dtype='float32')
    import_adapters(tmp_path / 'peft', folder / 'model', tmp_path / 'again')
    again, model = open_model(tmp_path / 'again'), open_model(trained)
    mesh = make_mesh(ONE)
    pair = (jax.device_get(load_trained(each, mesh)) for each in (again, model))
    jax.tree.map(np.testing.assert_array_equal, *pair)
    assert again.lora == dataclasses.replace(model.lora) and again.base.weights == model.base.weights
    with pytest.raises(UserError, match='has no adapters: export it with --format=huggingface'):
        export_adapters(folder / 'model', tmp_path / 'none', step=None, dtype='float32')


def test_an_adapter_of_peft_is_imported(folder, libraries, tmp_path):
    torch, transformers, peft = libraries
    base = transformers.AutoModelForCausalLM.from_pretrained(exported(folder / 'model', tmp_path))
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=['q_proj', 'o_proj', 'down_proj'], use_rslora=True)
    theirs = peft.get_peft_model(base, settings).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / 'theirs')
    import_adapters(tmp_path / 'theirs', folder / 'model', tmp_path / 'ours')
    params, model = loaded(tmp_path / 'ours')
    assert model.lora.targets == ('q', 'o', 'down') and math.isclose(model.lora.scale, 5 / math.sqrt(3))
    ids = np.random.default_rng(0).integers(4, 96, (2, 24))
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits - our_output(params, model.spec, ids)).max() <= 1e-4


def test_an_adapter_that_does_not_fit_is_refused(folder, trained, tmp_path):
    export_adapters(trained, tmp_path / 'peft', step=None, dtype='float32')
    other = tiny.write_model(tmp_path / 'other', spec=dataclasses.replace(tiny.SPEC, mlp_width=96))
    with pytest.raises(UserError, match='mlp.*has shape .*use the model that the adapter was trained on'):
        import_adapters(tmp_path / 'peft', other, tmp_path / 'to')
    config = read_json(tmp_path / 'peft' / 'adapter_config.json', '')
    write_json(tmp_path / 'peft' / 'adapter_config.json', config | dict(use_dora=True))
    with pytest.raises(UserError, match='use_dora is True, but we support only False'):
        import_adapters(tmp_path / 'peft', folder / 'model', tmp_path / 'to')
    assert not (tmp_path / 'to').exists()
