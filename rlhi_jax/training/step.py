"""The train step: a pure function of state and batch, which can be jitted on any mesh.

Dimension key: B rows in a batch, A accumulation steps.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.rows import Batch
from rlhi_jax.models.checkpoints import abstract_with_shardings
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params, abstract_params, split_params
from rlhi_jax.objectives import OBJECTIVES, Objective
from rlhi_jax.parallel.sharding import replicated
from rlhi_jax.scoring.pairs import pair_losses, score_replies
from rlhi_jax.training.model import scores_reference_in_step

Gradient = Callable[..., tuple[Params, dict[str, jax.Array]]]  # takes trained parameters, a batch, frozen parameters


class TrainState(flax.struct.PyTreeNode):
    """The state that a train step updates: the step number, the trained parameters and the optimizer state."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def learning_rate(optimizer: Any, num_steps: int) -> optax.Schedule:
    """Return the learning rate schedule that `config.optimizer` describes, for a run of `num_steps` steps."""
    decay_steps = max(num_steps - optimizer.warmup_steps, 1)
    after = {
        'constant': optax.constant_schedule(optimizer.learning_rate),
        'linear': optax.linear_schedule(optimizer.learning_rate, 0.0, decay_steps),
        'cosine': optax.cosine_decay_schedule(optimizer.learning_rate, decay_steps),
    }[optimizer.schedule]
    if not optimizer.warmup_steps:
        return after
    # In n steps, warm-up raises the rate from 1/n of its peak to the peak, so the first step already moves parameters.
    warmup = optax.linear_schedule(
        optimizer.learning_rate / optimizer.warmup_steps, optimizer.learning_rate, optimizer.warmup_steps - 1
    )
    return optax.join_schedules([warmup, after], [optimizer.warmup_steps])


def make_optimizer(optimizer: Any, num_steps: int) -> optax.GradientTransformation:
    """Return AdamW with global-norm clipping (unless `clip` is 0), as configured in `config.optimizer`."""
    clip = [optax.clip_by_global_norm(optimizer.clip)] if optimizer.clip else []
    adamw = optax.adamw(
        learning_rate(optimizer, num_steps),
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )
    return optax.chain(*clip, adamw)


def make_gradient(
    decoder: Decoder, objective: Objective, hyper: Any, *, accumulate: int, chunk: int, reference_in_step: bool = False
) -> Gradient:
    """Return a function that computes the gradient of the mean loss over a batch's pairs, and the mean metrics.

    With adapters, the function's last argument is the frozen parameters. With `reference_in_step`, the reference
    log-probabilities are computed from the frozen parameters alone; otherwise, the batch contains them.

    Sums over pairs are divided by the number of pairs in the whole batch, counted over all devices and accumulation
    steps. A pair's weight therefore does not depend on its row, device or accumulation step. Gradients accumulate in
    float32.
    """

    def loss_sum(
        params: Params, batch: Batch, pairs: jax.Array, frozen: Params
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if reference_in_step:
            with jax.named_scope('reference'):
                batch = batch._replace(reference_logp_BR=score_replies(decoder, frozen, batch, chunk=chunk).logp_BR)
        loss_BP, metrics = pair_losses(decoder, objective, hyper, frozen | params, batch, chunk=chunk)
        loss = loss_BP.sum() / pairs
        return loss, {'loss': loss} | {name: values.sum() / pairs for name, values in metrics.items()}

    def gradient(params: Params, batch: Batch, frozen: Params | None = None) -> tuple[Params, dict[str, jax.Array]]:
        frozen = frozen or {}
        pairs = jnp.maximum((batch.pair_id_BP >= 0).sum(), 1)
        if accumulate == 1:  # needs no second copy of the gradient
            grads, metrics = jax.grad(loss_sum, has_aux=True)(params, batch, pairs, frozen)
            return grads, metrics | {'pairs': pairs}
        # Row b * A + a goes to accumulation step a: each device keeps its own rows, so nothing moves between devices.
        by_step = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
        first = jax.tree.map(lambda x: x[0], by_step)
        value = jax.grad(loss_sum, has_aux=True)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value, params, first, pairs, frozen))

        def add(total, part):
            return jax.tree.map(jnp.add, total, value(params, part, pairs, frozen)), None

        (grads, metrics), _ = jax.lax.scan(add, zeros, by_step)
        return grads, metrics | {'pairs': pairs}

    return gradient


def make_train_step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return the train step as a pure function of the state, a batch and, with adapters, the frozen parameters.

    The step's metrics are scalars, computed before the update.
    """

    def train_step(state: TrainState, batch: Batch, *frozen: Params) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, metrics = gradient(state.params, batch, *frozen)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {'gradient_norm': optax.global_norm(grads), 'learning_rate': schedule(state.step)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def abstract_state(decoder: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and shardings of a run's state; optimizer moments are laid out like the parameters."""
    params, _ = split_params(decoder, abstract_params(decoder, mesh))
    shapes = jax.eval_shape(optimizer.init, params)
    shardings = jax.tree.map(lambda x: x.sharding, params)
    treedef = jax.tree.structure(params)

    def is_params(subtree):
        return jax.tree.structure(subtree) == treedef

    moments = jax.tree.map(lambda x: shardings if is_params(x) else replicated(mesh), shapes, is_leaf=is_params)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return TrainState(step, params, abstract_with_shardings(shapes, moments))


def jit_train_step(
    config: ConfigDict,
    decoder: Decoder,
    state: TrainState,
    mesh: Mesh,
    num_steps: int,
    optimizer: optax.GradientTransformation | None = None,
) -> Callable:
    """Return the jitted train step that `config` describes, with the optimizer that it describes unless one is given.

    The step's input and output states are laid out like `state`, which contains arrays or shapes with shardings. The
    new state overwrites the old state in memory, so both must have the same layout.
    """
    gradient = make_gradient(
        decoder,
        OBJECTIVES[config.objective],
        config.get(config.objective),
        accumulate=config.train.accumulate,
        chunk=config.model.logprob_chunk,
        reference_in_step=scores_reference_in_step(config),
    )
    optimizer = optimizer or make_optimizer(config.optimizer, num_steps)
    step = make_train_step(gradient, optimizer, learning_rate(config.optimizer, num_steps))
    layout = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, replicated(mesh)))
