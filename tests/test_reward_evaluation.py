"""The evaluation of rewards on any preferences, against scikit-learn, plain scores and counts by hand."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as log_loss_of_sklearn

from rlhi_jax.config import base_config
from rlhi_jax.data.rows import Capacities
from rlhi_jax.evaluate import evaluate_reward
from rlhi_jax.evaluation import calibration
from rlhi_jax.evaluation.conditions import NEUTRAL, conditioned
from rlhi_jax.evaluation.reward import evaluation, slices_of
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json
from rlhi_jax.models.checkpoints import save_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer

USERS = dict(ann='I like lists.', bob='I like prose.', cid='I like lists. I like tea! Why not?')
REWARD_SPEC = dataclasses.replace(tiny.SPEC, head='reward')


def preference(name: str, user: str, chosen: str, rejected: str, request: str = 'Tea?', **fields) -> dict:
    common = dict(id=name, user_id=user, persona=USERS.get(user, ''), prompt=[dict(role='user', content=request)])
    return common | dict(chosen=tiny._reply(chosen), rejected=tiny._reply(rejected)) | fields


RECORDS = [
    preference('a1', 'ann', '1. Green\n2. Black', 'Green and black.'),
    preference('b1', 'bob', 'Green and black.', '1. Green\n2. Black'),
    preference('c1', 'cid', '1. Green\n2. Black', 'Green and black.', subset='lists'),
    preference('a2', 'ann', 'Yes', 'No, never, not at all', request='Milk?'),
]
PREFERENCES = [tiny.parsed(record) for record in RECORDS]


@pytest.fixture(scope='module', params=['reward', 'lm'])
def model(request, tmp_path_factory):
    spec = dataclasses.replace(tiny.SPEC, head=request.param)
    return tiny.write_model(tmp_path_factory.mktemp(request.param) / 'model', spec=spec, seed=3)


def settings():
    c = base_config()
    c.model.dtype, c.model.logprob_chunk, c.rows.tokens, c.rows.scored = 'float32', 64, 512, 256
    return c


def write(path, records):
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')
    return str(path)


def test_the_other_persona_is_that_of_a_user_who_prefers_the_other_reply():
    conditions = conditioned(PREFERENCES, seed=0)
    assert list(conditions) == ['own', 'other', 'empty', 'neutral']
    others = {preference.id: preference.persona for preference in conditions['other']}
    assert (others['a1'], others['b1'], others['c1']) == (USERS['bob'], USERS['ann'], USERS['bob'])
    assert others['a2'] in USERS.values() and others['a2'] != USERS['ann']  # nobody contradicts it
    assert {p.persona for p in conditions['empty']} == {''} and {p.persona for p in conditions['neutral']} == {NEUTRAL}
    alone = conditioned([tiny.parsed(preference('x', '', 'Yes.', 'No.'))], seed=0)
    assert list(alone) == ['empty']
    assert list(conditioned(PREFERENCES[:1], seed=0)) == ['own', 'empty', 'neutral']


def plain_rewards(model, persona: str) -> dict[str, tuple[float, float]]:
    """The scores of both replies of each pair, each scored as a candidate of its own."""
    scorer = CandidateScorer(settings(), str(model), Capacities(512, 256, 4), sees_persona=True)
    items = [
        Candidates(f'{r["id"]} {side}', r['prompt'], persona or r['persona'], [r[side][0]['content']])
        for r in RECORDS
        for side in ('chosen', 'rejected')
    ]
    if persona == 'none':
        items = [item._replace(persona='') for item in items]
    scores = scorer(items)
    return {r['id']: tuple(scores[f'{r["id"]} {side}'][0] for side in ('chosen', 'rejected')) for r in RECORDS}


def test_figures_are_those_of_plain_scores(model, tmp_path):
    is_reward = read_json(model / 'model.json', '')['spec']['head'] == 'reward'
    result = evaluate_reward(settings(), model, write(tmp_path / 'pairs.jsonl', RECORDS), 'validation')
    assert (result['pairs'], result['users'], result['head']) == (4, 3, 'reward' if is_reward else 'lm')
    gaps = {name: plain_rewards(model, persona) for name, persona in (('own', ''), ('neutral', NEUTRAL))}
    without = plain_rewards(model, 'none')
    for name, of in gaps.items():
        gap = np.array([of[p][0] - of[p][1] - (0 if is_reward else without[p][0] - without[p][1]) for p in of])
        shown = result['conditions'][name]
        assert shown['accuracy']['mean'] == (gap > 0).mean()
        expected = log_loss_of_sklearn([1] * len(gap), 1 / (1 + np.exp(-gap)), labels=[0, 1])
        assert shown['log_loss']['mean'] == pytest.approx(expected, abs=1e-4)
    if not is_reward:  # without a persona, it cannot prefer either reply
        assert result['conditions']['empty']['accuracy']['mean'] == 0.5


def test_accuracies_baselines_and_slices():
    own = dict(a1=2.0, b1=-1.0, c1=0.0, a2=3.0)
    result = evaluation(dict(own=own, empty=dict.fromkeys(own, 0.0)), PREFERENCES)
    assert result['conditions']['own']['accuracy']['mean'] == (1 + 0 + 0.5 + 1) / 4
    assert result['conditions']['own']['accuracy_by_user']['mean'] == pytest.approx((1 + 0 + 0.5) / 3)
    assert result['conditions']['empty']['accuracy'] == dict(mean=0.5, low=0.5, high=0.5)
    assert result['difference']['own - empty']['mean'] == pytest.approx(0.125)
    # Of the two others, ann has one with her and one against her, bob two against him, and cid one of each.
    assert result['baselines']['population']['mean'] == (0.5 + 0 + 0.5 + 0.5) / 4
    assert result['baselines']['longer']['mean'] == (1 + 0 + 1 + 0) / 4
    lengths = {group: row['pairs'] for group, row in result['slices']['length'].items()}
    assert lengths == {'about as long': 3, 'chosen is shorter': 1}
    assert {group: row['pairs'] for group, row in result['slices']['kind'].items()} == {'lists': 1, 'unknown': 3}
    assert result['slices']['claims']['2 or 3']['accuracy']['mean'] == 0.5
    assert [slices_of(p)['claims'] for p in PREFERENCES] == ['1', '1', '2 or 3', '1']


def test_only_pairs_scored_under_every_condition_count():
    result = evaluation(dict(own=dict(a1=1.0, b1=1.0), empty=dict(b1=1.0, c1=1.0)), PREFERENCES)
    assert (result['pairs'], result['users']) == (1, 1) and 'after' not in result['calibration']


def test_calibration_against_counts_and_scikit_learn():
    rng = np.random.default_rng(0)
    gap = rng.normal(0.5, 2, 400)
    confidence, is_right = 1 / (1 + np.exp(-abs(gap))), gap > 0
    edges = np.linspace(0.5, 1, 11)
    error = 0.0
    for low, high in zip(edges, [*edges[1:-1], 1.01], strict=False):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            error += inside.sum() / 400 * abs(confidence[inside].mean() - is_right[inside].mean())
    assert calibration.calibration_error(gap) == pytest.approx(error)
    # Logistic regression without intercept, on pairs in both orders, has the same loss.
    fit = LogisticRegression(fit_intercept=False, C=1e9).fit(np.r_[gap, -gap][:, None], [1] * 400 + [0] * 400)
    assert calibration.fitted_scale(gap) == pytest.approx(fit.coef_[0, 0], rel=1e-3)
    assert calibration.fitted_scale(abs(gap)) > 1e4  # every choice is right
    assert calibration.fitted_scale(-abs(gap)) < 1e-4  # every choice is wrong


def test_scaling_mends_overconfidence_of_users_that_it_was_not_fitted_to():
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1, 4000)
    prefers = rng.random(4000) < 1 / (1 + np.exp(-truth))
    gaps = {str(n): float(gap) for n, gap in enumerate(5 * np.where(prefers, truth, -truth))}
    result = calibration.calibrated(gaps, {name: f'user {int(name) % 50}' for name in gaps})
    assert result['before']['calibration_error'] > 0.15 and result['after']['calibration_error'] < 0.03
    assert result['scale'] == pytest.approx(0.2, rel=0.1)


def test_bad_files_are_refused_by_name(tmp_path):
    model = tiny.write_model(tmp_path / 'model', spec=REWARD_SPEC)
    with pytest.raises(UserError, match='--pairs=.* contains no usable preferences .*chosen_equals_rejected'):
        evaluate_reward(settings(), model, write(tmp_path / 'same.jsonl', [preference('x', 'ann', 'A', 'A')]), 'test')
    with pytest.raises(UserError, match='--pairs=a,,b has an empty item'):
        evaluate_reward(settings(), model, 'a,,b', 'test')
    c = settings()
    c.rows.tokens = 8
    with pytest.raises(UserError, match='no pair fits in a row of 8 tokens'):
        evaluate_reward(c, model, write(tmp_path / 'pairs.jsonl', RECORDS), 'test')


def test_scores_that_are_not_finite_are_refused(tmp_path):
    model = tiny.write_model(tmp_path / 'model', spec=REWARD_SPEC)
    params = jax.device_get(nn.unbox(init_params(Decoder(REWARD_SPEC), jax.random.key(0))))
    shutil.rmtree(model / 'params')
    save_params(model / 'params', params | dict(score=np.full_like(params['score'], np.nan)))
    with pytest.raises(UserError, match=r"the scores of pair '\w+' are not finite"):
        evaluate_reward(settings(), model, write(tmp_path / 'pairs.jsonl', RECORDS), 'test')


def test_the_command_reads_reward_bench(tmp_path):
    """Texts instead of messages, a subset, no users and no personas."""
    model = tiny.write_model(tmp_path / 'model', spec=REWARD_SPEC)
    records = [
        dict(prompt='2+2?', chosen='4', rejected='5', subset='math', id=7),
        dict(prompt='Hi', chosen='Hello', rejected='No', subset='chat', id=8),
    ]
    pairs = write(tmp_path / 'bench.jsonl', records)
    flags = [f'--config={tiny.CONFIG}', f'--model={model}', f'--pairs={pairs}']
    shown = tiny.run_program('rlhi_jax.evaluate', 'reward', *flags, f'--to={tmp_path / "result.json"}').stdout
    result = read_json(tmp_path / 'result.json', '')
    assert list(result['conditions']) == ['empty'] and set(result['slices']['kind']) == {'math', 'chat'}
    assert '2 pairs from 2 users' in shown and 'math' in shown
    for wrong, message in (
        (['reward', flags[0], flags[1]], '--pairs is missing'),
        (['reward', *flags, '--workdir=x'], '--workdir does not apply to the command reward'),
        ([flags[0], flags[1]], '--model does not apply to the evaluation of a run'),
        (['rewards', *flags], 'the first argument is not a command: choose one of reward'),
    ):
        refused = tiny.run_program('rlhi_jax.evaluate', *wrong, check=False)
        assert refused.returncode == 2 and message in refused.stderr and 'Traceback' not in refused.stderr
