"""Workdir ownership: a resumed run agrees on every setting that decides its parameters."""

import copy

import pytest
import tiny_config
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import write_json
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.training.workdir import refuse_another_run, refuse_difference, training_settings


def test_settings_are_those_that_decide_the_parameters():
    config = tiny_config.get_config()
    settings = training_settings(config)
    sections = ['objective', 'seed', 'model', 'lora', 'rows', 'train', 'optimizer', 'dpo']
    assert set(settings) == {*sections, 'policy_sees_persona', 'ref_sees_persona', 'rm_sees_persona'}
    assert settings['dpo'] == config.dpo.to_dict() and settings['optimizer'] == config.optimizer.to_dict()
    assert 'path' not in settings['model'] and settings['model']['remat'] == config.model.remat


def test_the_section_of_a_new_objective_is_compared(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, 'cpo', OBJECTIVES['dpo'])
    config = tiny_config.get_config()
    with config.unlocked():
        config.objective, config.cpo = 'cpo', ConfigDict(dict(beta=0.1))
    before = {'config': training_settings(config)}
    refuse_difference('the run', before, {'config': training_settings(config)})
    config.cpo.beta = 0.2
    with pytest.raises(UserError, match=r'config\.cpo\.beta \(0\.1, now 0\.2\)'):
        refuse_difference('the run', before, {'config': training_settings(config)})


def test_a_key_that_an_older_run_lacks_had_its_default(tmp_path):
    config = tiny_config.get_config()
    run = {'config': training_settings(config), 'model': 'm', 'rows': 'r'}
    older = copy.deepcopy(run)
    del older['config']['dpo']['nll_weight']
    write_json(tmp_path / 'run.json', older)
    refuse_another_run(tmp_path, run)
    run['config']['dpo']['nll_weight'] = 0.5
    with pytest.raises(UserError, match=r'config\.dpo\.nll_weight \(0\.0, now 0\.5\)'):
        refuse_another_run(tmp_path, run)


def test_a_new_persona_switch_is_compared():
    config = tiny_config.get_config()
    with config.unlocked():
        config.judge_sees_persona = True
    assert training_settings(config)['judge_sees_persona'] is True
