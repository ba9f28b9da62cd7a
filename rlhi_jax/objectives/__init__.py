"""Training objectives as pure functions of log-probabilities or rewards, keyed by name."""

from rlhi_jax.objectives.bradley_terry import bradley_terry
from rlhi_jax.objectives.dpo import dpo
from rlhi_jax.objectives.hindsight import hindsight
from rlhi_jax.objectives.kto import kto
from rlhi_jax.objectives.pairs import Objective, PairScores, Sides
from rlhi_jax.objectives.sft import sft
from rlhi_jax.objectives.simpo import simpo

OBJECTIVES = {
    'dpo': Objective(dpo, head='lm', uses_reference=True),
    'hindsight': Objective(hindsight, head='lm', uses_reference=False, sides=Sides.HINDSIGHT),
    'kto': Objective(kto, head='lm', uses_reference=True, sides=Sides.ONE_OR_BOTH),
    'reward': Objective(
        bradley_terry,
        head='reward',
        uses_reference=False,
        uses_margin=True,
        uses_ties=True,
        sides=Sides.ONE_OR_BOTH,
    ),
    'sft': Objective(sft, head='lm', uses_reference=False, sides=Sides.CHOSEN_OR_BOTH),
    'simpo': Objective(simpo, head='lm', uses_reference=False),
}

__all__ = ['OBJECTIVES', 'Objective', 'PairScores', 'Sides']
