"""The type of an objective, and the type of its input: the scores of each pair's chosen and rejected replies.

Dimension key: P pairs (one or more leading dimensions); 2 the chosen and the rejected reply, in this order; N the
largest number of scored tokens that a reply can have.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Metrics = dict[str, jax.Array]


class PairScores(NamedTuple):
    """Scores of each pair's replies; scores that were not computed are None.

    Attributes:
      logp_P2: log-probability under the policy, summed over the scored tokens, in nats.
      reference_logp_P2: log-probability under the reference policy, summed over the scored tokens, in nats.
      length_P2: number of scored tokens in the reply.
      reward_P2: output of the reward head.
      margin_P: the pair's margin in the data; 0 if the data contains none.
      token_logp_P2N: log-probability of each scored token under the policy, in nats, starting with the reply's first
        token. Entries after the reply's last token are meaningless.
      tied_P: whether neither reply of the pair is better; None if no pair is tied.
      present_P2: whether the pair has this reply. If it does not, the reply's other scores are meaningless.
    """

    logp_P2: jax.Array | None = None
    reference_logp_P2: jax.Array | None = None
    length_P2: jax.Array | None = None
    reward_P2: jax.Array | None = None
    margin_P: jax.Array | None = None
    tied_P: jax.Array | None = None
    token_logp_P2N: jax.Array | None = None
    present_P2: jax.Array | None = None


class Sides(enum.Enum):
    """Which replies the pairs of a data set have."""

    BOTH = 'a chosen and a rejected reply to the same prompt'
    ONE_OR_BOTH = 'a chosen reply, a rejected reply or both'
    CHOSEN_OR_BOTH = 'a chosen reply, with or without a rejected one'
    HINDSIGHT = 'one reply to a request, with and without the follow-up in the prompt'


class Objective(NamedTuple):
    """A loss over pairs, and a description of the scores that it needs.

    Attributes:
      loss: function of scores and hyperparameters that returns each pair's loss [P] and metrics [P].
      head: the decoder head that computes the scores, 'lm' or 'reward'.
      uses_reference: whether the loss reads reference log-probabilities.
      uses_margin: whether the loss reads margins.
      uses_ties: whether the loss reads `tied_P`.
      sides: which replies the pairs must have.
    """

    loss: Callable[[PairScores, Any], tuple[jax.Array, Metrics]]
    head: str
    uses_reference: bool
    uses_margin: bool = False
    uses_ties: bool = False
    sides: Sides = Sides.BOTH
