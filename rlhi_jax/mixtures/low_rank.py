"""Rewards of many users as mixtures of a few: r_u(s) = (w + d_u) · B s, for the state s of a reply.

The basis B and the generic weights w are learned from many users. A user who is not among them is generic (d_u = 0)
until some of their pairs are known; d_u then comes from these pairs alone, in a fraction of a second. A state does not
depend on the user, so one pass over a reply gives its reward for everybody. Low-rank rewards: arXiv 2504.14439, where
weights are not negative and add up to 1; here, they may be any numbers.

Dimension key: N pairs, U users, K rewards in the basis, S size of a state, 2 the chosen and the rejected reply.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

NEWTON_STEPS = 50  # far more than a problem with K unknowns needs


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The rewards of users.

    Attributes:
      scale_S: what states are divided by.
      basis_KS: the rewards in the basis, for scaled states.
      generic_K: the weights of a user about whom nothing is known.
      users: how the weights of each known user differ from the generic weights ([K]), keyed by user id.
    """

    scale_S: np.ndarray
    basis_KS: np.ndarray
    generic_K: np.ndarray
    users: Mapping[str, np.ndarray]

    def weights(self, user: str) -> np.ndarray:
        """Return a user's weights, [K]; those of an unknown user are the generic weights."""
        return self.generic_K + self.users.get(user, 0)

    def features(self, states: np.ndarray) -> np.ndarray:
        """Return the rewards in the basis, [..., K], for states [..., S]."""
        return (states / self.scale_S) @ self.basis_KS.T

    def rewards(self, states: np.ndarray, users: Sequence[str]) -> np.ndarray:
        """Return the reward of each reply for each user, [..., U], for states [..., S]."""
        return self.features(states) @ np.stack([self.weights(user) for user in users]).T

    def with_user(self, user: str, state_N2S: np.ndarray, penalty: float) -> 'LowRank':
        """Return these rewards with a user's weights learned from the user's pairs (see `fit_user`)."""
        feature_N2K = self.features(state_N2S)
        known = fit_user(feature_N2K[:, 0] - feature_N2K[:, 1], self.generic_K, penalty)
        return dataclasses.replace(self, users={**self.users, user: known})


def fit_user(gap_NK: np.ndarray, generic_K: np.ndarray, penalty: float) -> np.ndarray:
    """Return how a user's weights differ from the generic weights, [K]: the most probable d given the user's pairs.

    It minimises Σ_n -log σ((w + d) · g_n) + penalty/2 |d|², by Newton's method. Without pairs, d is 0.

    Args:
      gap_NK: the chosen reply's rewards in the basis minus the rejected reply's.
      generic_K: the generic weights w.
      penalty: how strongly weights are drawn to the generic ones, above 0.
    """
    gap_NK = np.asarray(gap_NK, np.float64)
    weight_K = np.zeros(gap_NK.shape[1])
    for _ in range(NEWTON_STEPS):
        probability_N = 1 / (1 + np.exp(gap_NK @ (generic_K + weight_K)))  # that the pair is the other way round
        gradient_K = penalty * weight_K - gap_NK.T @ probability_N
        curvature_KK = (gap_NK.T * (probability_N * (1 - probability_N))) @ gap_NK + penalty * np.eye(len(weight_K))
        step_K = np.linalg.solve(curvature_KK, gradient_K)
        weight_K = weight_K - step_K * min(1.0, 1.0 / max(np.abs(step_K).max(), 1e-12))
        if np.abs(step_K).max() < 1e-9:
            break
    return weight_K


def fit(
    state_N2S: np.ndarray, users: Sequence[str], *, rank: int, penalty: float, steps: int, seed: int
) -> tuple[LowRank, list[float]]:
    """Learn the basis, the generic weights and the weights of each user from pairs.

    The loss is Σ_n -log σ(r_u(chosen) - r_u(rejected)) + penalty/2 (|B|² + |w|² + Σ_u |d_u|²). Apart from the split
    into w and d_u, the penalty is that of maximum-margin matrix factorisation (Srebro et al., 2004): the sum of the
    singular values of the matrix of all users' rewards.

    Args:
      state_N2S: the states of the replies of each pair.
      users: the user of each pair; '' stands for an unknown user, who gets the generic weights.
      rank: K.
      penalty: the weight of the penalty, above 0.
      steps: the number of steps of the Adam optimiser on all pairs.
      seed: the seed of the initial values.

    Returns:
      The rewards and the loss per pair at each step, in nats, without the penalty.
    """
    names = sorted({*users} - {''})
    number = {user: index for index, user in enumerate(names)}
    user_N = np.array([number.get(user, len(names)) for user in users])  # the last row is that of unknown users
    gap_NS = np.asarray(state_N2S[:, 0] - state_N2S[:, 1], np.float32)
    scale_S = np.sqrt(np.square(gap_NS).mean(axis=0)) * gap_NS.shape[1] ** 0.5 + 1e-6  # scaled gaps have a length of 1
    gap_NS = jnp.asarray(gap_NS / scale_S)
    draws = jax.random.split(jax.random.key(seed), 2)
    parameters = dict(
        basis_KS=jax.random.normal(draws[0], (rank, gap_NS.shape[1])) * 0.1,
        generic_K=jax.random.normal(draws[1], (rank,)) * 0.1,
        user_UK=jnp.zeros((len(names), rank)),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(parameters: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        user_UK = jnp.pad(parameters['user_UK'], ((0, 1), (0, 0)))
        weight_NK = parameters['generic_K'] + user_UK[user_N]
        logit_N = jnp.einsum('NK,KS,NS->N', weight_NK, parameters['basis_KS'], gap_NS)
        fitted = -jax.nn.log_sigmoid(logit_N).sum()
        size = sum(jnp.square(values).sum() for values in parameters.values())
        return fitted + penalty / 2 * size, fitted / len(user_N)

    def step(state, _):
        parameters, moments = state
        (_, fitted), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(parameters, updates), moments), fitted

    run = jax.jit(lambda parameters: jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=steps))
    (learned, _), losses = run(parameters)
    learned = {name: np.asarray(values) for name, values in learned.items()}
    weights = dict(zip(names, learned['user_UK'], strict=True))
    return LowRank(scale_S, learned['basis_KS'], learned['generic_K'], weights), np.asarray(losses).tolist()
