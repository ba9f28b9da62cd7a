"""The state at which a training run starts or resumes, and the frozen parameters beside it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rlhi_jax.models.checkpoints import RunCheckpoints
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params, split_params
from rlhi_jax.parallel.sharding import replicated
from rlhi_jax.training.step import TrainState, abstract_state


def adapters_and_frozen(decoder: Decoder, load: Callable[[], Params]) -> tuple[Params | None, Params]:
    """Return the initial values of the trainable parameters, and the frozen parameters; None and {} without adapters.

    The trainable parameters are the adapters and any reward head. `load` returns all parameters.
    """
    return split_params(decoder, load()) if decoder.lora else (None, {})


def first_state(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: RunCheckpoints,
    load: Callable[[], Params],
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state in the newest checkpoint and its progress or, if there is none, the state at step 0 and {}.

    `load` returns the trained parameters at step 0.
    """
    abstract = abstract_state(decoder, optimizer, mesh)
    step = checkpoints.latest_step
    if step is None:
        params = load()
        layout = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
        return TrainState(_scalar(0, mesh), params, jax.jit(optimizer.init, out_shardings=layout)(params)), {}
    params, opt_state, progress = checkpoints.restore(step, abstract.params, abstract.opt_state)
    return TrainState(_scalar(progress['step'], mesh), params, opt_state), progress


def _scalar(value: int, mesh: Mesh) -> jax.Array:
    return jax.device_put(np.int32(value), replicated(mesh))
