"""Training objectives as pure functions of log-probabilities or rewards, keyed by name."""

from rlhi_jax.objectives.bradley_terry import bradley_terry
from rlhi_jax.objectives.dpo import dpo
from rlhi_jax.objectives.pairs import Objective, PairScores
from rlhi_jax.objectives.sft import sft

OBJECTIVES = {
    'dpo': Objective(dpo, head='lm', uses_reference=True),
    'reward': Objective(bradley_terry, head='reward', uses_reference=False, uses_margin=True),
    'sft': Objective(sft, head='lm', uses_reference=False),
}

__all__ = ['OBJECTIVES', 'Objective', 'PairScores']
