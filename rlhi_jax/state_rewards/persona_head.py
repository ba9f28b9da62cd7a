"""A reward that reads personas: a small network over states of a frozen model.

The reward of a reply is r = v · gelu(P p + Q x + R y + b), for the states p of the persona, x of the user's last
request and y of the reply. The model reads request and reply without the persona, so one pass over a reply gives its
reward under every persona, and no second model is in memory. An empty persona counts as the mean of all.

Dimension key: N pairs, H width of the network, S size of a state, 2 the chosen and the rejected reply.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhi_jax.state_rewards.fitting import gap_scale, minimise

LEARNING_RATE = 0.01

Parameters = dict[str, np.ndarray]  # persona_HS, request_HS, reply_HS, bias_H, out_H


class Scale(NamedTuple):
    """What is subtracted from states, and what the result is divided by ([S] or a number)."""

    mean_S: np.ndarray
    size: np.ndarray

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return scaled states [..., S]; a state of NaN counts as the mean."""
        return np.nan_to_num((states - self.mean_S) / self.size).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PersonaHead:
    """A reward that reads personas; `scales` has the keys persona, request and reply."""

    scales: dict[str, Scale]
    parameters: Parameters

    def rewards(self, persona_NS: np.ndarray, request_NS: np.ndarray, reply_NRS: np.ndarray) -> np.ndarray:
        """Return the reward of each reply under the persona that goes with it, [N, R]."""
        states = dict(persona=persona_NS, request=request_NS, reply=reply_NRS)
        scaled = {name: jnp.asarray(self.scales[name](values)) for name, values in states.items()}
        return np.asarray(_rewards(self.parameters, **scaled))


def _rewards(parameters: Parameters, *, persona: jax.Array, request: jax.Array, reply: jax.Array) -> jax.Array:
    context_NH = persona @ parameters['persona_HS'].T + request @ parameters['request_HS'].T + parameters['bias_H']
    hidden_NRH = jax.nn.gelu(reply @ parameters['reply_HS'].T + context_NH[:, None])
    return hidden_NRH @ parameters['out_H']


def fit(
    persona_NS: np.ndarray,
    request_NS: np.ndarray,
    reply_N2S: np.ndarray,
    *,
    width: int,
    penalty: float,
    steps: int,
    seed: int,
) -> tuple[PersonaHead, list[float]]:
    """Learn the reward from pairs.

    The loss is Σ_n -log σ(r(chosen) - r(rejected)) plus penalty/2 times the sum of all squared parameters.

    Args:
      persona_NS: the states of the personas; an empty persona's is NaN.
      request_NS: the states of the requests.
      reply_N2S: the states of the replies of each pair.
      width: H.
      penalty: the weight of the penalty, above 0.
      steps: the number of steps of the Adam optimiser on all pairs.
      seed: the seed of the initial values.

    Returns:
      The reward and the loss per pair at each step, in nats, without the penalty.
    """
    scales = dict(
        persona=_scale(persona_NS),
        request=_scale(request_NS),
        reply=Scale(reply_N2S.mean(axis=(0, 1)), gap_scale(reply_N2S)),
    )
    states = dict(persona=persona_NS, request=request_NS, reply=reply_N2S)
    scaled = {name: jnp.asarray(scales[name](values)) for name, values in states.items()}
    draws = dict(zip(scaled, jax.random.split(jax.random.key(seed), len(scaled)), strict=True))
    start = {f'{name}_HS': jax.random.normal(draws[name], (width, states.shape[-1])) for name, states in scaled.items()}
    start |= dict(bias_H=jnp.zeros(width), out_H=jnp.zeros(width))

    def losses(parameters: Parameters) -> jax.Array:
        chosen_N, rejected_N = _rewards(parameters, **scaled).T
        return -jax.nn.log_sigmoid(chosen_N - rejected_N)

    found, means = minimise(losses, start, penalty=penalty, learning_rate=LEARNING_RATE, steps=steps)
    return PersonaHead(scales, found), means


def _scale(state_NS: np.ndarray) -> Scale:
    """Return the scale that gives states a mean of 0 and a length of about 1.

    The size is one number: a state that differs from those seen in training is scaled like them.
    """
    seen_NS = state_NS[~np.isnan(state_NS).any(axis=1)]
    mean_S = seen_NS.mean(axis=0) if len(seen_NS) else np.zeros(state_NS.shape[1])
    length = np.sqrt(np.square(seen_NS - mean_S).sum(axis=1).mean()) if len(seen_NS) else 0.0
    # If all states are the same, nothing can be learned from them, whatever the size is.
    return Scale(mean_S, np.array(length if length > 1e-6 else np.inf))
