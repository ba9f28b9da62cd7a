"""One optimizer step: a pure function of state and batch, to be jitted on any mesh.

Dimension key: B rows of a batch, A accumulation steps.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlhi_jax.models.decoder import Decoder
from rlhi_jax.objectives import Objective
from rlhi_jax.scoring import Batch, Params, pair_losses


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def learning_rate(optimizer: Any, num_steps: int) -> optax.Schedule:
    """The schedule that `config.optimizer` describes, over `num_steps`."""
    decay_steps = max(num_steps - optimizer.warmup_steps, 1)
    after = {
        'constant': optax.constant_schedule(optimizer.learning_rate),
        'linear': optax.linear_schedule(optimizer.learning_rate, 0.0, decay_steps),
        'cosine': optax.cosine_decay_schedule(optimizer.learning_rate, decay_steps),
    }[optimizer.schedule]
    if not optimizer.warmup_steps:
        return after
    # The first step already moves: warm-up goes from 1/n to n/n of the peak.
    warmup = optax.linear_schedule(
        optimizer.learning_rate / optimizer.warmup_steps, optimizer.learning_rate, optimizer.warmup_steps - 1
    )
    return optax.join_schedules([warmup, after], [optimizer.warmup_steps])


def make_optimizer(optimizer: Any, num_steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping (0: none) from `config.optimizer`."""
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
    decoder: Decoder, objective: Objective, hyper: Any, *, accumulate: int, chunk: int
) -> Callable[[Params, Batch], tuple[Params, dict[str, jax.Array]]]:
    """The gradient of the mean loss over all pairs of a batch, and mean metrics.

    Sums over pairs are divided by the pair count of the whole batch, over devices and accumulation steps: every pair
    weighs the same however rows are packed. Gradients accumulate in float32.
    """

    def loss_sum(params: Params, rows: Batch, pairs: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss_BP, metrics = pair_losses(decoder, objective, hyper, params, rows, chunk=chunk)
        loss = loss_BP.sum() / pairs
        return loss, {'loss': loss} | {name: values.sum() / pairs for name, values in metrics.items()}

    def gradient(params: Params, batch: Batch) -> tuple[Params, dict[str, jax.Array]]:
        pairs = jnp.maximum((batch['pair_id'] >= 0).sum(), 1)
        # Row b * A + a goes to step a: each device keeps its own rows, so nothing moves between devices.
        by_step = {n: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0) for n, x in batch.items()}
        first = {name: values[0] for name, values in by_step.items()}
        value = jax.grad(loss_sum, has_aux=True)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value, params, first, pairs))

        def add(total, rows):
            return jax.tree.map(jnp.add, total, value(params, rows, pairs)), None

        (grads, metrics), _ = jax.lax.scan(add, zeros, by_step)
        return grads, metrics | {'pairs': pairs}

    return gradient


def make_train_step(
    gradient: Callable[[Params, Batch], tuple[Params, dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One pure step; metrics are scalars of this step, before its update."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, metrics = gradient(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {'gradient_norm': optax.global_norm(grads), 'learning_rate': schedule(state.step)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
