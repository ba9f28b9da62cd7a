"""Rewards of many users as mixtures of a few: r_u(s) = (w + d_u) · B s, for the state s of a reply.

The basis B and the generic weights w are learned from many users. A user who is not among them is generic (d_u = 0)
until some of their pairs are known; d_u then comes from these pairs alone, in a fraction of a second. A state does not
depend on the user, so one pass over a reply gives its reward for everybody. Low-rank rewards: arXiv 2504.14439, where
weights are not negative and add up to 1; here, they may be any numbers.

Users differ in how readily they call two replies equally good, too. In the model of Davidson (1970), chosen, rejected
and a tie have probabilities in the ratio e^(g/2) : e^(-g/2) : ν, where g is the gap between the rewards. Each user has
a ν of their own, learned like their weights.

Dimension key: N pairs, U users, K rewards in the basis, S size of a state, 2 the chosen and the rejected reply,
3 the outcomes chosen, rejected and tie.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from rlhi_jax.objectives.bradley_terry import log_preferred
from rlhi_jax.state_rewards.fitting import gap_scale, minimise

LEARNING_RATE = 0.05
NEWTON_STEPS = 50  # far more than a problem with K + 1 unknowns needs


class Taste(NamedTuple):
    """A user's taste: the weights of the rewards, and log ν (-inf if there are no ties)."""

    weight_K: np.ndarray
    log_tie: float

    def __add__(self, other: 'Taste') -> 'Taste':
        return Taste(self.weight_K + other.weight_K, self.log_tie + other.log_tie)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The rewards of users.

    Attributes:
      scale_S: what states are divided by.
      basis_KS: the rewards in the basis, for scaled states.
      generic: the taste of a user about whom nothing is known.
      users: how the taste of each known user differs from the generic taste, keyed by user id.
    """

    scale_S: np.ndarray
    basis_KS: np.ndarray
    generic: Taste
    users: Mapping[str, Taste]

    def taste(self, user: str) -> Taste:
        """Return a user's taste; that of an unknown user is the generic taste."""
        return self.generic + self.users[user] if user in self.users else self.generic

    def features(self, states: np.ndarray) -> np.ndarray:
        """Return the rewards in the basis, [..., K], for states [..., S]."""
        return (states / self.scale_S) @ self.basis_KS.T

    def rewards(self, states: np.ndarray, users: Sequence[str]) -> np.ndarray:
        """Return the reward of each reply for each user, [..., U], for states [..., S]."""
        return self.features(states) @ np.stack([self.taste(user).weight_K for user in users]).T

    def losses(self, user: str, state_N2S: np.ndarray, tied_N: np.ndarray) -> np.ndarray:
        """Return the negative log-probability of a user's judgement of each pair, [N], in nats."""
        gap_N = np.subtract(*self.rewards(state_N2S, [user])[..., 0].T)
        return np.asarray(_losses(gap_N, tied_N, self.taste(user).log_tie))

    def with_user(self, user: str, state_N2S: np.ndarray, tied_N: np.ndarray, penalty: float) -> 'LowRank':
        """Return these rewards with a user's taste learned from the user's pairs (see `fit_user`)."""
        feature_N2K = self.features(state_N2S)
        known = fit_user(feature_N2K[:, 0] - feature_N2K[:, 1], tied_N, self.generic, penalty)
        return dataclasses.replace(self, users={**self.users, user: known})


def _losses(gap_N: jax.Array, tied_N: jax.Array, log_tie_N: jax.Array | float) -> jax.Array:
    preferred_N = log_preferred(gap_N, log_tie_N)
    return -jnp.where(tied_N, preferred_N + log_tie_N - gap_N / 2, preferred_N)


def fit_user(gap_NK: np.ndarray, tied_N: np.ndarray, generic: Taste, penalty: float) -> Taste:
    """Return how a user's taste differs from the generic taste: the most probable difference given the user's pairs.

    It minimises the negative log-probability of all judgements plus penalty/2 times the squared length of the
    difference, by Newton's method. Without pairs, the difference is 0.

    Args:
      gap_NK: the chosen reply's rewards in the basis minus the rejected reply's.
      tied_N: whether neither reply of a pair is better.
      generic: the generic taste.
      penalty: how strongly tastes are drawn to the generic one, above 0.
    """
    gap_NK, tied_N = np.asarray(gap_NK, np.float64), np.asarray(tied_N, bool)
    rank = gap_NK.shape[1]
    # The unknowns are the weights, and the difference in log ν. Each pair's gap and log ν are linear in them.
    of_gap_NJ = np.pad(gap_NK, ((0, 0), (0, 1)))
    of_tie_J = np.eye(rank + 1)[rank]

    def logits(found_J: np.ndarray) -> np.ndarray:
        gap_N = gap_NK @ (generic.weight_K + found_J[:rank])
        return np.stack([gap_N / 2, -gap_N / 2, np.full_like(gap_N, generic.log_tie + found_J[rank])], axis=-1)

    def objective(found_J: np.ndarray) -> float:
        logit_N3 = logits(found_J)
        judged_N = np.where(tied_N, logit_N3[:, 2], logit_N3[:, 0])
        return (np.logaddexp.reduce(logit_N3, axis=-1) - judged_N).sum() + penalty / 2 * found_J @ found_J

    found_J = np.zeros(rank + 1)
    for _ in range(NEWTON_STEPS):
        chosen_N, rejected_N, tie_N = softmax(logits(found_J), axis=-1).T
        lead_N = (chosen_N - rejected_N) / 2
        gradient_J = penalty * found_J + (lead_N - ~tied_N / 2) @ of_gap_NJ + (tie_N - tied_N).sum() * of_tie_J
        curvature_JJ = (of_gap_NJ.T * ((chosen_N + rejected_N) / 4 - lead_N**2)) @ of_gap_NJ
        mixed_J = -(lead_N * tie_N) @ of_gap_NJ
        curvature_JJ += np.outer(mixed_J, of_tie_J) + np.outer(of_tie_J, mixed_J)
        curvature_JJ += (tie_N * (1 - tie_N)).sum() * np.outer(of_tie_J, of_tie_J) + penalty * np.eye(rank + 1)
        step_J = np.linalg.solve(curvature_JJ, gradient_J)
        if np.abs(step_J).max() < 1e-9:
            break
        before = objective(found_J)
        while objective(found_J - step_J) > before and np.abs(step_J).max() > 1e-9:
            step_J = step_J / 2  # a full step can overshoot where judgements are almost certain
        found_J = found_J - step_J
    return Taste(found_J[:rank], float(found_J[rank]))


def fit(
    state_N2S: np.ndarray,
    users: Sequence[str],
    tied_N: np.ndarray,
    *,
    rank: int,
    penalty: float,
    steps: int,
    seed: int,
) -> tuple[LowRank, list[float]]:
    """Learn the basis, the generic taste and the taste of each user from pairs.

    The loss is the negative log-probability of all judgements plus penalty/2 (|B|² + |w|² + Σ_u |d_u|²). Apart from the
    split into w and d_u, the penalty is that of maximum-margin matrix factorisation (Srebro et al., 2004): the sum of
    the singular values of the matrix of all users' rewards. The difference of a user's log ν is penalised like d_u.

    Args:
      state_N2S: the states of the replies of each pair.
      users: the user of each pair; '' stands for an unknown user, who has the generic taste.
      tied_N: whether neither reply of a pair is better.
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
    scale_S = gap_scale(state_N2S)
    gap_NS = jnp.asarray((state_N2S[:, 0] - state_N2S[:, 1]) / scale_S, jnp.float32)
    draws = jax.random.split(jax.random.key(seed), 2)
    start = dict(
        basis_KS=jax.random.normal(draws[0], (rank, gap_NS.shape[1])) * 0.1,
        generic_K=jax.random.normal(draws[1], (rank,)) * 0.1,
        user_UK=jnp.zeros((len(names), rank)),
        tie_U=jnp.zeros(len(names)),
        log_tie=jnp.zeros(()) if np.any(tied_N) else jnp.array(-jnp.inf),  # without ties, its gradient is 0
    )

    def losses(found: dict[str, jax.Array]) -> jax.Array:
        weight_NK = found['generic_K'] + jnp.pad(found['user_UK'], ((0, 1), (0, 0)))[user_N]
        gap_N = jnp.einsum('NK,KS,NS->N', weight_NK, found['basis_KS'], gap_NS)
        return _losses(gap_N, tied_N, found['log_tie'] + jnp.pad(found['tie_U'], (0, 1))[user_N])

    found, means = minimise(losses, start, penalty=penalty, learning_rate=LEARNING_RATE, steps=steps, free='log_tie')
    tastes = map(Taste, found['user_UK'], found['tie_U'].tolist())
    generic = Taste(found['generic_K'], float(found['log_tie']))
    return LowRank(scale_S, found['basis_KS'], generic, dict(zip(names, tastes, strict=True))), means
