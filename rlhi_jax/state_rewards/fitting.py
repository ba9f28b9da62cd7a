"""Scales states, and finds the parameters of a reward."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

Parameters = Mapping[str, jax.Array]


def gap_scale(state_N2S: np.ndarray) -> np.ndarray:
    """Return what to divide states by, [S], so that the gaps between the replies of pairs have a length of about 1.

    One penalty then suits the states of any model.
    """
    gap_NS = np.asarray(state_N2S[:, 0] - state_N2S[:, 1], np.float32)
    return np.sqrt(np.square(gap_NS).mean(axis=0)) * gap_NS.shape[1] ** 0.5 + 1e-6


def minimise(
    losses: Callable[[Parameters], jax.Array],
    start: Parameters,
    *,
    penalty: float,
    learning_rate: float,
    steps: int,
    free: str = '',
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Minimise the sum of losses plus penalty/2 times the sum of squared parameters, with Adam and a cosine schedule.

    Args:
      losses: returns the loss of each pair, [N], given the parameters.
      start: the initial parameters.
      penalty: the weight of the penalty.
      learning_rate: the learning rate of the first step; that of the last is 0.
      steps: the number of steps, each on all pairs.
      free: the name of a parameter that is not penalised, if any.

    Returns:
      The parameters, and the mean loss at each step, without the penalty.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def objective(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
        loss_N = losses(parameters)
        size = sum(jnp.square(values).sum() for name, values in parameters.items() if name != free)
        return loss_N.sum() + penalty / 2 * size, loss_N.mean()

    def step(state, _):
        parameters, moments = state
        (_, mean), gradient = jax.value_and_grad(objective, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(parameters, updates), moments), mean

    run = jax.jit(lambda parameters: jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=steps))
    (found, _), means = run(start)
    return jax.tree.map(np.asarray, found), means.tolist()
