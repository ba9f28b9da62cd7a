"""Checks the settings of an online run, and keeps its reference model."""

import jax
import optax
from ml_collections import ConfigDict

from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import open_reward_model
from rlhi_jax.models.parameters import Params
from rlhi_jax.objectives import OBJECTIVES, Sides


def check_settings(config: ConfigDict) -> None:
    """Check that the settings suit an online run.

    Raises:
      UserError: a setting does not; the message names it and what to do.
    """
    require(config, 'model.path')
    objective = OBJECTIVES[config.objective]
    if objective.sides is not Sides.BOTH or objective.head != 'lm':
        raise UserError(
            f'config.objective={config.objective!r} does not train a policy on pairs: set it to dpo or simpo'
        )
    if config.online.prompts < 1:
        raise UserError('config.online.prompts is 0: set it to the number of requests per round')
    if config.candidates.samples < 2:
        raise UserError('config.candidates.samples is 1, but a pair needs two answers: set it to at least 2')
    if config.optimizer.schedule != 'constant':
        raise UserError(
            f'config.optimizer.schedule={config.optimizer.schedule!r} needs the number of steps, which an online run '
            "does not know in advance: set it to 'constant'"
        )
    if config.online.sync_reference and (config.lora.rank or not objective.uses_reference):
        raise UserError(
            'config.online.sync_reference needs a reference model whose weights can change: set it to 0, or train '
            "without adapters (config.lora.rank=0) and with config.objective='dpo'"
        )


def check_judge(config: ConfigDict) -> None:
    """Check that the model that judges answers, if it is a reward model, is given and is one.

    Raises:
      UserError: it is not.
    """
    if config.candidates.scorer == 'reward_model':
        require(config, 'candidates.reward_model')
        open_reward_model(config.candidates.reward_model, 'config.candidates.reward_model')


def beside_reference(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer whose state is a pair: the given optimizer's state, and the reference model's parameters.

    At first, the reference model is the policy. Updates do not change it.
    """

    def update(grads: Params, state: tuple, params: Params) -> tuple[Params, tuple]:
        updates, new = optimizer.update(grads, state[0], params)
        return updates, (new, state[1])

    return optax.GradientTransformation(lambda params: (optimizer.init(params), copied(params)), update)


@jax.jit
def copied(params: Params) -> Params:
    """Return a copy of parameters, which a train step that overwrites its input leaves alone."""
    return jax.tree.map(lambda x: x.copy(), params)
