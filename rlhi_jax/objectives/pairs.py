"""The input of an objective: scores of each pair's chosen and rejected reply, along an axis of length 2.

Dimension key: P pairs (any leading shape), 2 chosen and rejected, in this order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Metrics = dict[str, jax.Array]


class PairScores(NamedTuple):
    """Scores of the replies of pairs; a score that was not computed is None.

    Attributes:
      logp_P2: log-probability under the policy, summed over the scored tokens, nats.
      reference_logp_P2: the same under the reference.
      length_P2: number of scored tokens.
      reward_P2: output of the reward head.
    """

    logp_P2: jax.Array | None = None
    reference_logp_P2: jax.Array | None = None
    length_P2: jax.Array | None = None
    reward_P2: jax.Array | None = None


class Objective(NamedTuple):
    """A loss over pairs.

    Attributes:
      loss: maps scores and hyperparameters to a loss per pair [P] and metrics per pair [P].
      head: the decoder's head that gives the scores, 'lm' or 'reward'.
      uses_reference: whether the loss reads reference log-probabilities.
    """

    loss: Callable[[PairScores, Any], tuple[jax.Array, Metrics]]
    head: str
    uses_reference: bool
