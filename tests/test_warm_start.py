"""A loop with a warm start: DPO starts from the model that was fine-tuned on the rewrites, and that model samples."""

import json
import math

import pytest
import tiny
from test_loop import flags

from rlhi_jax.config import base_config
from rlhi_jax.config.loop_paths import method_of, stage_config, training_config, with_paths
from rlhi_jax.models.checkpoints import open_model, saved_steps

WARM = ('--config.loop.sft.epochs=2', '--config.loop.sft.learning_rate=1e-3')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp('model'), seed=6, spec=tiny.LOOP_SPEC)


@pytest.fixture(scope='module')
def finished(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('warm') / 'run'
    done = tiny.run_program('rlhi_jax.loop', *flags(model, workdir), *WARM)
    return workdir, done.stdout


def test_dpo_starts_from_the_warm_start_and_compares_with_it(model, finished):
    workdir, output = finished
    warm, last = workdir / 'sft' / 'run', saved_steps(workdir / 'sft' / 'run')[-1]
    begun = json.loads((workdir / 'dpo' / 'run' / 'run.json').read_text())
    assert open_model(warm, last).weights in json.dumps(begun) and open_model(model).weights not in json.dumps(begun)
    log = [json.loads(line) for line in (workdir / 'dpo' / 'run' / 'metrics.jsonl').open()]
    assert log[0]['loss'] == pytest.approx(math.log(2), abs=1e-5)  # the policy is its own reference
    losses = [json.loads(line)['loss'] for line in (warm / 'metrics.jsonl').open()]
    assert losses[-1] < losses[0]
    sampled = json.loads((workdir / 'candidates' / 'manifest.json').read_text())['made_from']
    assert open_model(warm, last).weights in json.dumps(sampled['model'])
    assert f'Model: {workdir}/sft/huggingface' in output


def test_the_warm_start_learns_from_rewrites_alone(finished):
    workdir, _ = finished
    manifests = {name: (workdir / name / 'pairs' / 'manifest.json').read_text() for name in ('sft', 'dpo')}
    assert 'kept_candidates_train' not in json.loads(manifests['sft'])['counts']
    assert json.loads(manifests['dpo'])['counts']['kept_candidates_train'] > 0


def test_a_finished_warm_start_is_not_trained_again_and_its_change_reaches_dpo(model, finished):
    workdir, _ = finished
    given = [*flags(model, workdir), *WARM]
    assert 'up to date' in tiny.run_program('rlhi_jax.loop', *given).stdout
    before = open_model(workdir / 'dpo' / 'run').weights
    tiny.run_program('rlhi_jax.loop', *given, '--config.loop.sft.learning_rate=2e-3', '--redo', '--yes')
    assert open_model(workdir / 'dpo' / 'run').weights != before


def test_other_parts_keep_the_policy(tmp_path):
    config = base_config()
    config.model.path, config.loop.sft.epochs = 'policy', 1
    assert method_of(config).trains == ('reward', 'sft', 'dpo')
    paths = {stage: stage_config(config, tmp_path, stage).model.path for stage in ('strangers', 'candidates')}
    assert paths == dict(strangers='policy', candidates=str(tmp_path / 'sft' / 'run'))
    trained_from = {
        objective: training_config(with_paths(config, tmp_path), tmp_path, objective).model.path
        for objective in method_of(config).trains
    }
    assert trained_from == dict(reward='policy', sft='policy', dpo=str(tmp_path / 'sft' / 'run'))
