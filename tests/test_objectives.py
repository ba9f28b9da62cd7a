"""Objectives against closed forms and plain arithmetic."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.models.decoder import OutputHead
from rlhi_jax.objectives import OBJECTIVES, PairScores
from rlhi_jax.scoring.logprobs import token_logprobs

POLICY = np.array([[-10.0, -12.0], [-7.0, -5.0]], np.float32)
REFERENCE = np.array([[-11.0, -11.0], [-7.5, -6.0]], np.float32)
LENGTHS = np.array([[4.0, 2.0], [5.0, 10.0]], np.float32)
SCORES = PairScores(jnp.array(POLICY), jnp.array(REFERENCE), jnp.array(LENGTHS))


def hyper(**values) -> ConfigDict:
    return ConfigDict(dict(variant='sigmoid', beta=0.5, label_smoothing=0.0, nll_weight=0.0) | values)


def reward_hyper(**values) -> ConfigDict:
    return ConfigDict(dict(center=0.0, ties=0.0, label_smoothing=0.0) | values)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_dpo_is_its_equation():
    loss, metrics = OBJECTIVES['dpo'].loss(SCORES, hyper())
    gaps = [(1.0 - -1.0), (0.5 - 1.0)]  # of log-ratios, by hand
    np.testing.assert_allclose(loss, [-log_sigmoid(0.5 * gap) for gap in gaps], rtol=1e-6)
    np.testing.assert_allclose(metrics['margin'], [1.0, -0.25], rtol=1e-6)
    np.testing.assert_allclose(metrics['reward_chosen'], [0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(metrics['reward_rejected'], [-0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics['accuracy'], [1, 0])
    np.testing.assert_allclose(metrics['kl_estimate'], [0.0, 0.75], atol=1e-6)


def test_conservative_dpo_mixes_both_labels():
    loss, _ = OBJECTIVES['dpo'].loss(SCORES, hyper(label_smoothing=0.1))
    expected = [-0.9 * log_sigmoid(m) - 0.1 * log_sigmoid(-m) for m in (1.0, -0.25)]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_hinge():
    loss, _ = OBJECTIVES['dpo'].loss(SCORES, hyper(variant='hinge'))
    np.testing.assert_allclose(loss, [0.0, 1.25], atol=1e-6)


def test_ipo_averages_over_tokens():
    loss, _ = OBJECTIVES['dpo'].loss(SCORES, hyper(variant='ipo'))
    gaps = [1.0 / 4 - -1.0 / 2, 0.5 / 5 - 1.0 / 10]
    np.testing.assert_allclose(loss, [(gap - 1.0) ** 2 for gap in gaps], rtol=1e-6)
    longer = SCORES._replace(
        logp_P2=SCORES.logp_P2 * 3, reference_logp_P2=SCORES.reference_logp_P2 * 3, length_P2=LENGTHS * 3
    )
    np.testing.assert_allclose(OBJECTIVES['dpo'].loss(longer, hyper(variant='ipo'))[0], loss, rtol=1e-5)


def test_equal_policies_start_at_log_2():
    loss, metrics = OBJECTIVES['dpo'].loss(SCORES._replace(reference_logp_P2=SCORES.logp_P2), hyper())
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-7)
    assert not np.any(metrics['reward_chosen']) and not np.any(metrics['reward_rejected'])


def test_bradley_terry_is_a_logistic_regression_on_the_difference():
    rewards = PairScores(reward_P2=jnp.array([[2.0, 0.5], [-1.0, 1.0]]))
    loss, metrics = OBJECTIVES['reward'].loss(rewards, reward_hyper())
    np.testing.assert_allclose(loss, [-log_sigmoid(1.5), -log_sigmoid(-2.0)], rtol=1e-6)
    np.testing.assert_allclose(metrics['accuracy'], [1, 0])
    gradient = jax.grad(lambda r: OBJECTIVES['reward'].loss(PairScores(reward_P2=r), reward_hyper())[0].sum())
    sigmoid = 1 / (1 + np.exp([1.5, -2.0]))
    np.testing.assert_allclose(gradient(rewards.reward_P2), np.stack([-sigmoid, sigmoid], -1), rtol=1e-5)


def test_a_margin_is_subtracted_from_the_difference():
    rewards = PairScores(reward_P2=jnp.array([[2.0, 0.5], [-1.0, 1.0]]), margin_P=jnp.array([1.0, 0.25]))
    loss, metrics = OBJECTIVES['reward'].loss(rewards, reward_hyper())
    np.testing.assert_allclose(loss, [-log_sigmoid(0.5), -log_sigmoid(-2.25)], rtol=1e-6)
    np.testing.assert_allclose(metrics['margin'], [1.5, -2.0])
    torch = pytest.importorskip('torch')
    better, worse = torch.tensor(np.array(rewards.reward_P2), requires_grad=True).T
    theirs = -torch.nn.functional.logsigmoid(better - worse - torch.tensor([1.0, 0.25]))
    np.testing.assert_allclose(loss, theirs.detach(), rtol=1e-6)


def test_centring_pins_the_offset():
    loss, _ = OBJECTIVES['reward'].loss(PairScores(reward_P2=jnp.array([[2.0, 1.0]])), reward_hyper(center=0.1))
    np.testing.assert_allclose(loss, [-log_sigmoid(1.0) + 0.9], rtol=1e-6)


def test_ties_are_the_third_outcome_of_davidson():
    """For each gap and each outcome, the loss is the negative log of a share of three weights."""
    rewards, nu = np.array([[2.0, 0.5], [2.0, 0.5], [-1.0, 1.0], [0.25, 0.25]], np.float32), 0.7
    tied = np.array([False, True, True, True])
    scores = PairScores(reward_P2=jnp.array(rewards), tied_P=jnp.array(tied))
    loss, metrics = OBJECTIVES['reward'].loss(scores, reward_hyper(ties=nu))
    for (chosen, rejected), is_tie, value in zip(rewards.tolist(), tied, loss, strict=True):
        better, worse = math.exp(chosen), math.exp(rejected)
        tie = nu * math.sqrt(better * worse)
        assert float(value) == pytest.approx(-math.log((tie if is_tie else better) / (better + worse + tie)), rel=1e-6)
    np.testing.assert_allclose(metrics['accuracy'], [1, 0.5, 0.5, 0.5])
    swapped = PairScores(reward_P2=jnp.array(rewards[:, ::-1]), tied_P=jnp.array([False] * 4))
    lost = OBJECTIVES['reward'].loss(swapped, reward_hyper(ties=nu))[0]
    won, drawn = (
        OBJECTIVES['reward'].loss(scores._replace(tied_P=jnp.array([x] * 4)), reward_hyper(ties=nu))[0]
        for x in (False, True)
    )
    np.testing.assert_allclose(np.exp(-won) + np.exp(-lost) + np.exp(-drawn), 1, rtol=1e-6)


def test_without_ties_davidson_is_bradley_terry():
    rewards = PairScores(reward_P2=jnp.array([[2.0, 0.5], [-1.0, 1.0]]), margin_P=jnp.array([0.5, 0.0]))
    plain, _ = OBJECTIVES['reward'].loss(rewards, reward_hyper())
    nearly, _ = OBJECTIVES['reward'].loss(rewards, reward_hyper(ties=1e-9))
    np.testing.assert_allclose(nearly, plain, rtol=1e-6)


def test_pairs_that_are_all_ties_pull_rewards_together():
    def loss(rewards):
        scores = PairScores(reward_P2=rewards, tied_P=jnp.array([True, True]))
        return OBJECTIVES['reward'].loss(scores, reward_hyper(ties=1.0))[0].sum()

    rewards = jnp.array([[2.0, 0.5], [-1.0, 1.0]])
    for _ in range(200):
        rewards -= jax.grad(loss)(rewards)
    np.testing.assert_allclose(rewards[:, 0], rewards[:, 1], atol=1e-3)
    assert float(loss(rewards)) == pytest.approx(2 * math.log(3), abs=1e-5)


def test_label_smoothing_mixes_both_outcomes():
    rewards = PairScores(reward_P2=jnp.array([[2.0, 0.5], [-1.0, 1.0]]))
    loss, _ = OBJECTIVES['reward'].loss(rewards, reward_hyper(label_smoothing=0.2))
    np.testing.assert_allclose(loss, [-0.8 * log_sigmoid(g) - 0.2 * log_sigmoid(-g) for g in (1.5, -2.0)], rtol=1e-6)


def test_a_single_reply_is_compared_with_reward_0():
    """The reward of the reply that is missing is nonsense, and must reach neither the loss nor its gradient."""
    rewards, present = jnp.array([[2.0, jnp.nan], [jnp.nan, 1.0]]), jnp.array([[True, False], [False, True]])

    def loss(rewards):
        return OBJECTIVES['reward'].loss(PairScores(reward_P2=rewards, present_P2=present), reward_hyper())[0]

    np.testing.assert_allclose(loss(rewards), [-log_sigmoid(2.0), -log_sigmoid(-1.0)], rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x).sum())(rewards)
    expected = [[-1 / (1 + math.exp(2.0)), 0], [0, 1 / (1 + math.exp(-1.0))]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_sft_is_the_mean_likelihood_of_the_chosen_reply():
    loss, _ = OBJECTIVES['sft'].loss(SCORES, None)
    np.testing.assert_allclose(loss, [10 / 4, 7 / 5], rtol=1e-6)


@pytest.mark.parametrize('chunk', [1, 4, 12, 64])
def test_chunked_logprobs_equal_the_whole_softmax(chunk):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, output = jax.random.normal(keys[0], (2, 12, 8)), jax.random.normal(keys[1], (33, 8))
    target = jax.random.randint(keys[2], (2, 12), 0, 33)

    def whole(hidden, output):
        logp = jax.nn.log_softmax(hidden @ output.T)
        return jnp.take_along_axis(logp, target[..., None], -1)[..., 0]

    def chunked(hidden, output):
        return token_logprobs(hidden, target, OutputHead(output, None), chunk=chunk)

    np.testing.assert_allclose(chunked(hidden, output), whole(hidden, output), rtol=1e-5, atol=1e-5)
    gradients = [
        jax.grad(lambda *x, f=f: jnp.sin(f(*x)).sum(), argnums=(0, 1))(hidden, output) for f in (chunked, whole)
    ]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_chunked_logprobs_never_hold_all_logits():
    def peak(chunk):
        spec = [
            jax.ShapeDtypeStruct(s, d)
            for s, d in [((1, 512, 16), 'float32'), ((1, 512), 'int32'), ((4096, 16), 'float32')]
        ]
        gradient = jax.grad(
            lambda h, t, o: token_logprobs(h, t, OutputHead(o, None), chunk=chunk).sum(), argnums=(0, 2)
        )
        return jax.jit(gradient).lower(*spec).compile().memory_analysis().temp_size_in_bytes

    logits = 512 * 4096 * 4
    assert peak(512) >= logits
    assert peak(32) < logits / 4


def test_a_chunk_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match='logprob_chunk'):
        token_logprobs(jnp.zeros((1, 10, 4)), jnp.zeros((1, 10), int), OutputHead(jnp.zeros((8, 4)), None), chunk=3)


def test_length_normalized_dpo_averages_over_tokens():
    loss, _ = OBJECTIVES['dpo'].loss(SCORES, hyper(variant='length_normalized'))
    gaps = [1.0 / 4 - -1.0 / 2, 0.5 / 5 - 1.0 / 10]
    np.testing.assert_allclose(loss, [-log_sigmoid(0.5 * gap) for gap in gaps], rtol=1e-6)


def test_robust_dpo_is_unbiased():
    """If labels are swapped with probability ε, the expected loss is the DPO loss on the correct labels."""
    swapped = SCORES._replace(logp_P2=SCORES.logp_P2[:, ::-1], reference_logp_P2=SCORES.reference_logp_P2[:, ::-1])
    right, wrong = (
        OBJECTIVES['dpo'].loss(s, hyper(variant='robust', label_smoothing=0.2))[0] for s in (SCORES, swapped)
    )
    np.testing.assert_allclose(0.8 * right + 0.2 * wrong, OBJECTIVES['dpo'].loss(SCORES, hyper())[0], rtol=1e-6)


def test_dpo_with_likelihood_adds_the_chosen_reply():
    plain, more = (OBJECTIVES['dpo'].loss(SCORES, hyper(nll_weight=weight))[0] for weight in (0.0, 0.3))
    np.testing.assert_allclose(more - plain, [0.3 * 10 / 4, 0.3 * 7 / 5], rtol=1e-5)


def test_simpo_is_its_equation():
    loss, metrics = OBJECTIVES['simpo'].loss(SCORES, ConfigDict(dict(beta=2.0, gamma=0.5)))
    rewards = 2.0 * POLICY / LENGTHS
    np.testing.assert_allclose(loss, [-log_sigmoid(c - r - 0.5) for c, r in rewards], rtol=1e-6)
    np.testing.assert_allclose(metrics['margin'], rewards[:, 0] - rewards[:, 1], rtol=1e-6)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize('missing', [(), ((0, 1),), ((0, 0), (1, 1))])
def test_kto_is_its_equation(missing):
    present = np.ones((2, 2), bool)
    for place in missing:
        present[place] = False
    settings = ConfigDict(dict(beta=0.5, chosen_weight=1.5, rejected_weight=0.7))
    scores = SCORES._replace(present_P2=jnp.array(present))
    loss, metrics = OBJECTIVES['kto'].loss(scores, settings)
    ratios = (POLICY - REFERENCE).astype(float)
    point = max(0.0, ratios[present].mean())
    of_side = [[1.5 * (1 - sigmoid(0.5 * (c - point))), 0.7 * (1 - sigmoid(0.5 * (point - r)))] for c, r in ratios]
    expected = [
        np.mean([loss for loss, known in zip(*row, strict=True) if known]) for row in zip(of_side, present, strict=True)
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics['reference_point'], point, rtol=1e-6)


def test_kto_holds_its_reference_point_constant():
    settings = ConfigDict(dict(beta=0.5, chosen_weight=1.0, rejected_weight=1.0))
    scores = SCORES._replace(present_P2=jnp.array([[True, False], [True, True]]))

    def loss(logp):
        return OBJECTIVES['kto'].loss(scores._replace(logp_P2=logp), settings)[0].sum()

    point = (1.0 + 0.5 + 1.0) / 3
    slopes = np.array([[1, 0], [1, 1]]) * [[1.0, 0.0], [0.5, 0.5]]  # mean over the sides of a pair
    ratios, signs = POLICY - REFERENCE, np.array([1, -1])
    sigmoids = 1 / (1 + np.exp(-0.5 * (ratios - point)))
    of_ratio = -0.5 * signs * sigmoids * (1 - sigmoids)
    np.testing.assert_allclose(jax.grad(loss)(scores.logp_P2), of_ratio * slopes, rtol=1e-5)


def test_hindsight_weighs_tokens_by_their_change():
    rng = np.random.default_rng(0)
    tokens = -rng.exponential(size=(3, 2, 6)).astype(np.float32)
    lengths = np.array([6, 4, 1])
    scores = PairScores(
        token_logp_P2N=jnp.array(tokens), length_P2=jnp.array(np.repeat(lengths[:, None], 2, 1).astype(np.float32))
    )
    settings = ConfigDict(dict(skip_tokens=1))
    loss, metrics = OBJECTIVES['hindsight'].loss(scores, settings)
    for i, length in enumerate(lengths):
        change = [float(tokens[i, 0, t] - tokens[i, 1, t]) for t in range(1, length)]
        expected = -sum(a * float(tokens[i, 1, t]) for t, a in enumerate(change, start=1)) / max(len(change), 1)
        assert float(loss[i]) == pytest.approx(expected, rel=1e-5)
        assert float(metrics['margin'][i]) == pytest.approx(np.mean(change) if change else 0, rel=1e-5)

    def total(values):
        return OBJECTIVES['hindsight'].loss(scores._replace(token_logp_P2N=values), settings)[0].sum()

    gradient = jax.grad(total)(scores.token_logp_P2N)
    assert not np.any(gradient[:, 0])  # the policy that has seen the follow-up is the teacher
    np.testing.assert_allclose(gradient[0, 1, 1:], -(tokens[0, 0, 1:] - tokens[0, 1, 1:]) / 5, rtol=1e-5)
    assert not np.any(gradient[:, 1, 0]) and not np.any(gradient[1, 1, 4:])


@pytest.mark.parametrize(
    'name, settings, expected',
    [
        ('dpo', dict(variant='sigmoid'), [0.3132616877555847, 0.825939416885376, 1.8047446012496948]),
        ('dpo', dict(variant='length_normalized'), [0.5231232643127441, 0.6931471824645996, 0.9123027324676514]),
        (
            'dpo',
            dict(variant='robust', label_smoothing=0.2),
            [-0.020071664825081825, 0.9092726707458496, 2.34641122818],
        ),
        ('dpo', dict(variant='hinge'), [0.0, 1.25, 2.625]),
        ('dpo', dict(variant='ipo'), [0.0625, 1.0, 3.2314343452453613]),
        ('sft', {}, [2.5, 1.399999976158142, 4.5]),
        ('simpo', dict(beta=2.0, gamma=0.5), [0.0015023101586848497, 2.395545482635498, 0.018149929121136665]),
    ],
)
def test_losses_are_those_of_trl(name, settings, expected):
    """The values are those of TRL 1.16.0 (sigmoid, sigmoid_norm, robust, hinge, ipo, sft; simpo of its CPO trainer)."""
    more = np.array([[-31.5, -20.25]]), np.array([[-30.0, -22.0]]), np.array([[7.0, 3.0]])
    scores = PairScores(*(np.concatenate(both) for both in zip((POLICY, REFERENCE, LENGTHS), more, strict=True)))
    settings = hyper(**settings) if name == 'dpo' else ConfigDict(settings)
    loss, _ = OBJECTIVES[name].loss(scores, settings)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)
