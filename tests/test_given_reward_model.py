"""A loop that is given a reward model: it makes no rewrites, trains no reward model, and scores with the given one."""

import json

import pytest
import tiny
from test_loop import flags

from rlhi_jax.config import base_config
from rlhi_jax.config.loop_paths import method_of, stage_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.loop import Round
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.rounds.settings import check_settings


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    return tiny.write_policy_and_reward_model(tmp_path_factory.mktemp('models'))


def config_with(models, method: str):
    config = base_config()
    config.loop.method, config.model.path, config.candidates.reward_model = method, *map(str, models)
    return config


def test_rewrites_are_made_only_if_pairs_come_from_them(models, tmp_path):
    parts = {}
    for method in ('rewards', 'both', 'rewrites'):
        config = config_with(models, method)
        assert method_of(config).trains == ('dpo',)
        parts[method] = {part.name for part in Round(config, tmp_path).parts()}
        assert stage_config(config, tmp_path, 'candidates').candidates.reward_model == str(models[1])
    assert 'candidates' in parts['rewards'] and 'rewrites' not in parts['rewards']
    assert {'candidates', 'rewrites'} <= parts['both']
    assert 'candidates' not in parts['rewrites'] and 'rewrites' in parts['rewrites']
    warm = config_with(models, 'rewards')
    warm.loop.sft.epochs = 1
    assert 'rewrites' in {part.name for part in Round(warm, tmp_path).parts()}


def test_a_model_of_another_kind_is_refused(models):
    policy, _ = models
    with pytest.raises(UserError, match='config.candidates.reward_model: .* is not a reward model'):
        check_settings(config_with((policy, policy), 'rewards'))


@pytest.mark.parametrize(
    ('method', 'scorer', 'why'),
    [
        ('rewrites', 'reward_model', "config.loop.method='rewrites'"),
        ('both', 'policy', "config.candidates.scorer='policy'"),
    ],
)
def test_a_model_that_would_score_nothing_is_refused(models, method, scorer, why):
    config = config_with(models, method)
    config.candidates.scorer = scorer
    with pytest.raises(UserError, match=f'scores nothing, because {why}'):
        check_settings(config)


def test_the_loop_scores_with_it(models, tmp_path):
    policy, reward = models
    given = (
        '--config.loop.method=rewards',
        '--config.pairs.against=policy',
        f'--config.candidates.reward_model={reward}',
    )
    tiny.run_program('rlhi_jax.loop', *flags(policy, tmp_path / 'run'), *given)
    candidates = json.loads((tmp_path / 'run' / 'candidates' / 'manifest.json').read_text())
    assert candidates['made_from']['reward_model']['weights'] == open_model(reward).weights
    records = map(json.loads, (tmp_path / 'run' / 'candidates' / 'records.jsonl').open())
    assert all(score is not None for record in records for score in record['scores'])
    assert (tmp_path / 'run' / 'dpo' / 'huggingface').is_dir() and not (tmp_path / 'run' / 'reward').exists()
