"""The head that reads personas: made-up users, a plain computation, and empty personas."""

import math

import numpy as np
import pytest

from rlhi_jax.state_rewards.persona_head import PersonaHead, fit

SIZE = 16
SETTINGS = dict(width=16, penalty=0.01, steps=500, seed=0)


def world(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half of the users like replies that point one way, and the other half like those that point the other way."""
    rng = np.random.default_rng(seed)
    ways_2S = np.random.default_rng(9).normal(size=(2, SIZE))
    side_N = rng.choice([-1.0, 1.0], size=count)
    persona_NS = side_N[:, None] * ways_2S[0] + 0.3 * rng.normal(size=(count, SIZE))
    request_NS, reply_N2S = rng.normal(size=(count, SIZE)), rng.normal(size=(count, 2, SIZE))
    gap_N = side_N * ((reply_N2S[:, 0] - reply_N2S[:, 1]) @ ways_2S[1])
    reply_N2S[gap_N < 0] = reply_N2S[gap_N < 0, ::-1]
    return persona_NS, request_NS, reply_N2S


@pytest.fixture(scope='module')
def head() -> PersonaHead:
    fitted, losses = fit(*world(0, 400), **SETTINGS)
    assert losses[0] == pytest.approx(math.log(2)) and losses[-1] < 0.2
    return fitted


def accuracy(head: PersonaHead, persona_NS, request_NS, reply_N2S) -> float:
    chosen_N, rejected_N = head.rewards(persona_NS, request_NS, reply_N2S).T
    return float((chosen_N > rejected_N).mean())


def test_the_persona_decides(head):
    persona_NS, request_NS, reply_N2S = world(1, 200)
    assert accuracy(head, persona_NS, request_NS, reply_N2S) > 0.85
    assert accuracy(head, -persona_NS, request_NS, reply_N2S) < 0.15
    assert accuracy(head, np.full_like(persona_NS, np.nan), request_NS, reply_N2S) == pytest.approx(0.5, abs=0.12)


def test_rewards_are_those_of_the_formula(head):
    persona_NS, request_NS, reply_N2S = world(2, 3)
    weights, scales = head.parameters, head.scales
    for number in range(3):
        p, x = (
            (states[number] - scales[name].mean_S) / scales[name].size
            for name, states in dict(persona=persona_NS, request=request_NS).items()
        )
        for side in range(2):
            y = (reply_N2S[number, side] - scales['reply'].mean_S) / scales['reply'].size
            inner_H = (
                weights['persona_HS'] @ p + weights['request_HS'] @ x + weights['reply_HS'] @ y + weights['bias_H']
            )
            outer_H = [z / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in inner_H]
            expected = float(np.dot(weights['out_H'], outer_H))
            found = head.rewards(persona_NS, request_NS, reply_N2S)[number, side]
            assert found == pytest.approx(expected, abs=1e-4)


def test_an_empty_persona_counts_as_the_mean(head):
    persona_NS, request_NS, reply_N2S = world(3, 4)
    mean_NS = np.tile(head.scales['persona'].mean_S, (4, 1))
    empty = head.rewards(np.full_like(persona_NS, np.nan), request_NS, reply_N2S)
    np.testing.assert_allclose(empty, head.rewards(mean_NS, request_NS, reply_N2S))


def test_without_personas_the_head_learns_what_all_have_in_common():
    persona_NS, request_NS, reply_N2S = world(4, 400)
    reply_N2S = np.sort(reply_N2S, axis=1)[:, ::-1]  # the better reply has the larger states
    fitted, _ = fit(np.full_like(persona_NS, np.nan), request_NS, reply_N2S, **SETTINGS)
    assert accuracy(fitted, persona_NS, request_NS, reply_N2S) > 0.95


@pytest.mark.parametrize('distinct', [1, 2])
def test_a_persona_unlike_those_in_training_is_not_blown_up(distinct):
    persona_NS, request_NS, reply_N2S = world(6, 40)
    fitted, _ = fit(persona_NS[np.arange(40) % distinct], request_NS, reply_N2S, **SETTINGS)
    lengths = np.linalg.norm(fitted.scales['persona'](persona_NS), axis=1)
    assert lengths.max() < 10 and np.isfinite(fitted.rewards(persona_NS, request_NS, reply_N2S)).all()


def test_the_same_seed_gives_the_same_head():
    data = world(5, 40)
    once, again, other = (fit(*data, **SETTINGS | dict(steps=20, seed=seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(once.parameters['reply_HS'], again.parameters['reply_HS'])
    assert np.abs(once.parameters['reply_HS'] - other.parameters['reply_HS']).max() > 1e-3
