"""Mixtures of rewards: users' tastes against scikit-learn and SciPy, and a basis recovered from made-up users."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from rlhi_jax.state_rewards.low_rank import LowRank, Taste, fit, fit_user

RANK, SIZE = 2, 24
NEVER = np.zeros(1000, bool)  # no pair is tied


@pytest.fixture(scope='module')
def world():
    """Users whose rewards mix two rewards: states, weights of users, and a function that draws pairs of a user."""
    rng = np.random.default_rng(0)
    basis_KS = rng.normal(size=(RANK, SIZE))

    def pairs(weight_K: np.ndarray, count: int) -> np.ndarray:
        state_N2S = rng.normal(size=(count, 2, SIZE))
        gap_N = (state_N2S[:, 0] - state_N2S[:, 1]) @ basis_KS.T @ weight_K
        state_N2S[gap_N < 0] = state_N2S[gap_N < 0, ::-1]
        return state_N2S

    weights = {f'u{number:02}': rng.normal(size=RANK) for number in range(60)}
    drawn = {user: pairs(weight, 12) for user, weight in weights.items()}
    users = [user for user, each in drawn.items() for _ in each]
    states = np.concatenate(list(drawn.values()))
    rewards, losses = fit(states, users, NEVER[: len(users)], rank=RANK, penalty=0.3, steps=400, seed=0)
    return pairs, rewards, losses


def accuracy(rewards: LowRank, user: str, state_N2S: np.ndarray) -> float:
    chosen_N, rejected_N = rewards.rewards(state_N2S, [user])[..., 0].T
    return float((chosen_N > rejected_N).mean())


@pytest.mark.parametrize('generic', [0.0, 1.5])
def test_weights_of_a_user_are_those_of_logistic_regression(generic):
    rng = np.random.default_rng(1)
    gap_NK, penalty = rng.normal(size=(30, 3)) + 0.4, 0.7
    found = fit_user(gap_NK, NEVER[:30], Taste(np.full(3, generic), -np.inf), penalty).weight_K
    # scikit-learn has no offset, so w is a prior mean there only if it is 0; else the gradient must vanish.
    probability_N = 1 / (1 + np.exp(gap_NK @ (generic + found)))
    np.testing.assert_allclose(penalty * found, gap_NK.T @ probability_N, atol=1e-8)
    if not generic:
        both = np.concatenate([gap_NK, -gap_NK]), np.repeat([1, 0], 30)
        plain = LogisticRegression(C=0.5 / penalty, fit_intercept=False, tol=1e-10).fit(*both)
        np.testing.assert_allclose(found, plain.coef_[0], rtol=1e-4)


def test_users_who_are_almost_certain_are_learned_too():
    """The objective's gradient vanishes where full steps of Newton's method would overshoot."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gap_NK, tied_N = 8 * rng.normal(size=(12, 3)), rng.random(12) < 0.3
        generic = Taste(3 * rng.normal(size=3), 1.0)
        found = fit_user(gap_NK, tied_N, generic, 1.0)
        gap_N = gap_NK @ (generic.weight_K + found.weight_K)
        chosen_N, rejected_N, tie_N = softmax(
            np.stack([gap_N / 2, -gap_N / 2, np.full(12, generic.log_tie + found.log_tie)]), axis=0
        )
        gradient_K = found.weight_K + gap_NK.T @ ((chosen_N - rejected_N - ~tied_N) / 2)
        assert np.abs(gradient_K).max() < 1e-5 and abs(found.log_tie + (tie_N - tied_N).sum()) < 1e-5


def test_without_pairs_a_user_is_generic(world):
    _, rewards, _ = world
    found = fit_user(np.zeros((0, RANK)), NEVER[:0], rewards.generic, 1.0)
    np.testing.assert_array_equal(found.weight_K, np.zeros(RANK))
    assert found.log_tie == 0
    states = np.random.default_rng(2).normal(size=(5, SIZE))
    np.testing.assert_allclose(
        rewards.rewards(states, ['nobody'])[:, 0], rewards.features(states) @ rewards.generic.weight_K
    )


def test_ten_pairs_tell_what_a_new_user_likes(world):
    pairs, rewards, losses = world
    assert losses[0] == pytest.approx(np.log(2), abs=0.05) and losses[-1] < 0.35
    before, after = [], []
    for number in range(20):
        weight_K = np.random.default_rng(100 + number).normal(size=RANK)
        known, unseen = pairs(weight_K, 10), pairs(weight_K, 200)
        before.append(accuracy(rewards, 'new', unseen))
        after.append(accuracy(rewards.with_user('new', known, NEVER[:10], 0.3), 'new', unseen))
    assert np.mean(before) < 0.65 and np.mean(after) > 0.8


def test_rewards_of_many_users_come_from_one_pass(world):
    _, rewards, _ = world
    states = np.random.default_rng(3).normal(size=(4, 2, SIZE))
    together = rewards.rewards(states, ['u00', 'u01', 'nobody'])
    assert together.shape == (4, 2, 3)
    for number, user in enumerate(('u00', 'u01', 'nobody')):
        np.testing.assert_allclose(together[..., number], rewards.rewards(states, [user])[..., 0])


def test_the_same_seed_gives_the_same_rewards():
    rng = np.random.default_rng(4)
    states, users = rng.normal(size=(40, 2, SIZE)), [f'u{n % 5}' for n in range(40)]
    once, again, other = (
        fit(states, users, NEVER[:40], rank=RANK, penalty=1, steps=20, seed=seed)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(once.basis_KS, again.basis_KS)
    assert np.abs(once.basis_KS - other.basis_KS).max() > 1e-3


def test_a_user_with_ties_is_the_most_probable_one():
    """The minimum that SciPy finds for the negative log-probability of Davidson's model, written out."""
    rng, penalty = np.random.default_rng(5), 0.4
    gap_NK, tied_N = rng.normal(size=(25, 3)) + 0.3, rng.random(25) < 0.4
    generic = Taste(np.array([0.5, -0.2, 0.1]), 0.7)

    def objective(unknown_J: np.ndarray) -> float:
        gap_N = gap_NK @ (generic.weight_K + unknown_J[:3])
        tie = np.exp(generic.log_tie + unknown_J[3])
        total_N = np.exp(gap_N / 2) + np.exp(-gap_N / 2) + tie
        probability_N = np.where(tied_N, tie, np.exp(gap_N / 2)) / total_N
        return -np.log(probability_N).sum() + penalty / 2 * np.square(unknown_J).sum()

    expected = minimize(objective, np.zeros(4), tol=1e-12).x
    found = fit_user(gap_NK, tied_N, generic, penalty)
    np.testing.assert_allclose([*found.weight_K, found.log_tie], expected, atol=1e-5)


def test_who_calls_replies_equally_good_is_learned(world):
    """Of two users with the same taste, one calls close replies tied: their ties become likelier, not their rewards."""
    pairs, _, _ = world
    weight_K = np.array([1.0, -1.0])
    drawn = {user: pairs(weight_K, 100) for user in ('decided', 'undecided')}
    tied = dict(decided=NEVER[:100], undecided=np.arange(100) % 2 == 0)
    users = [user for user in drawn for _ in range(100)]
    states_N2S, tied_N = np.concatenate(list(drawn.values())), np.concatenate(list(tied.values()))
    rewards, _ = fit(states_N2S, users, tied_N, rank=RANK, penalty=0.3, steps=400, seed=0)
    assert rewards.taste('undecided').log_tie > rewards.taste('decided').log_tie + 1
    unseen = pairs(weight_K, 50)
    is_tie = np.ones(50, bool)
    assert rewards.losses('undecided', unseen, is_tie).mean() < rewards.losses('decided', unseen, is_tie).mean() - 0.5
    assert accuracy(rewards, 'undecided', unseen) > 0.7
    # The probabilities of the three outcomes of a pair add up to 1.
    outcomes = (unseen, NEVER[:50]), (unseen[:, ::-1], NEVER[:50]), (unseen, is_tie)
    total_N = sum(np.exp(-rewards.losses('undecided', states, tied_N)) for states, tied_N in outcomes)
    np.testing.assert_allclose(total_N, 1, rtol=1e-5)
