"""What an objective sees of a pair: numbers for the chosen and the rejected reply, on an axis of their own.

Dimension key: P pairs (any leading shape), 2 chosen and rejected, in this order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Metrics = dict[str, jax.Array]


class PairScores(NamedTuple):
    """Scores of the replies of pairs; a field that the objective does not ask for is None.

    Attributes:
      logp_P2: summed log-probability under the policy, nats.
      reference_logp_P2: the same under the reference.
      length_P2: scored tokens.
      reward_P2: output of the reward head.
    """

    logp_P2: jax.Array | None = None
    reference_logp_P2: jax.Array | None = None
    length_P2: jax.Array | None = None
    reward_P2: jax.Array | None = None


class Objective(NamedTuple):
    """A loss on pairs.

    Attributes:
      loss: maps scores and hyperparameters to a loss per pair [P] and metrics per pair [P].
      head: the head it needs, 'lm' or 'reward'.
      uses_reference: whether reference log-probabilities must be there.
    """

    loss: Callable[[PairScores, Any], tuple[jax.Array, Metrics]]
    head: str
    uses_reference: bool
