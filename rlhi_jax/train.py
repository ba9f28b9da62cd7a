"""Train a reward model, a DPO policy or an SFT control on a row plan.

    python -m rlhi_jax.train --config=configs/NAME.py[:variant] --workdir=DIR [--config.a.b=value]

A run resumes by itself from its newest checkpoint; the workdir is a model folder that `convert export`, `evaluate` and
further runs take.
"""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.cli.program import define_flags, load_config, run, workdir_path
from rlhi_jax.config import require
from rlhi_jax.data.loader import RowOrder, RowReader, batches
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import ModelFolder, RunCheckpoints, open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import check_fit, load_params
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel import processes
from rlhi_jax.parallel.sharding import batch_sharding, local_rows, make_mesh, on_mesh, replicated, to_global
from rlhi_jax.scoring.reference import ReferenceCache, fill_reference, reference_identity, with_reference
from rlhi_jax.training.metrics import RunLog
from rlhi_jax.training.model import make_decoder, sees_persona
from rlhi_jax.training.rows import abstract_rows, open_rows
from rlhi_jax.training.step import TrainState, abstract_state, jit_train_step, make_optimizer
from rlhi_jax.training.workdir import claim_workdir, refuse_another_run, run_identity

STOPPED = 75  # exit status of a run that was asked to stop and saved: start it again (EX_TEMPFAIL of sysexits.h)


def train(config: ConfigDict, workdir: Path) -> bool:
    """Run or resume a training run to its end, or to the step at which it is asked to stop.

    Returns:
      Whether the run is complete.

    Raises:
      UserError: anything the user can mend, before any long work; in its midst only a loss that is no number.
    """
    objective = OBJECTIVES[config.objective]
    model = open_model(config.model.path)
    plan, shards, template = open_rows(config, model)
    mesh = make_mesh(config.mesh.to_dict())
    decoder = make_decoder(config, model)
    parts = 'config.train.batch_rows / config.train.accumulate'
    check_fit(mesh, decoder.spec, config.train.batch_rows // config.train.accumulate, parts)
    order = RowOrder(len(plan.rows), config.train.batch_rows, config.train.epochs, config.seed)
    num_steps = min(order.num_steps, config.train.max_steps or order.num_steps)
    reader = RowReader(plan, shards, template, sees_persona(config))
    run = run_identity(config, model) | {'rows': plan.digest}
    refuse_another_run(workdir, run)
    cache = None
    if objective.uses_reference:
        folder = Path(config.data.reference) if config.data.reference else workdir / 'reference'
        cache = ReferenceCache(folder, reference_identity(config, model, plan))
    claim_workdir(workdir, run, model, decoder.spec)

    checkpoints = RunCheckpoints(workdir, keep=config.checkpoint.keep)
    with on_mesh(mesh):
        read = reader.__getitem__
        if cache is not None:
            ref_reader = RowReader(plan, shards, template, config.ref_sees_persona)
            wanted = (row for step in range(num_steps) for row in order[step])
            fill_reference(config, cache, ref_reader, wanted, decoder, model, mesh)
            read = with_reference(reader, cache)
        state = _first_state(config, decoder, model, mesh, checkpoints, num_steps)
        first_step = int(state.step)
        sharding = batch_sharding(mesh)
        places = local_rows(sharding, config.train.batch_rows)
        stream = batches(
            read, order, first_step=first_step, num_steps=num_steps, local_rows=places, threads=config.data.threads
        )
        log = RunLog(workdir, next_step=first_step) if processes.is_main() else None
        stop = processes.Preemption()
        pending = _Pending(config, log, num_steps, first_step)
        if first_step < num_steps:
            # Compiled once: what is compiled refuses other shapes and layouts, so no later step can compile again.
            shapes = state, abstract_rows(config, mesh, config.train.batch_rows)
            step_fn = jit_train_step(config, decoder, state, mesh, num_steps).lower(*shapes).compile()
        with pending.progress:
            for step in range(first_step, num_steps):
                batch = to_global(next(stream), places, sharding, config.train.batch_rows)
                if log:
                    rows = [row for row in order[step] if row >= 0]
                    log.examples(step, [plan.pair_names[i] for row in rows for i in plan.pair_ids(row)])
                state, metrics = step_fn(state, batch)
                pending.push(step, metrics)
                stopping = stop.reached(step)
                done = step + 1
                if done == num_steps or stopping or done % config.checkpoint.every_steps == 0:
                    pending.flush()
                    checkpoints.save(done, state.params, state.opt_state, {'step': done, 'seed': config.seed})
                if stopping:
                    break
        checkpoints.close()
        stop.release()
    if log:
        log.close()
        reached = int(state.step)
        rest = 'the same command goes on from there' if reached < num_steps else 'the run is complete'
        print(f'{workdir}: saved at step {reached} of {num_steps}; {rest}')
    return int(state.step) == num_steps


class _Pending:
    """Metrics of the step in flight: read only once the next one is dispatched, so the device never waits for us."""

    def __init__(self, config: ConfigDict, log: RunLog | None, num_steps: int, first_step: int):
        self._every, self._log, self._last = config.log.every_steps, log, num_steps - 1
        self.progress = Progress('train', num_steps, unit='steps', done=first_step, enabled=log is not None)
        self._step, self._metrics = -1, None
        self._time, self._pairs = time.monotonic(), 0

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.flush()
        self._step, self._metrics = step, metrics

    def flush(self) -> None:
        if self._metrics is None:
            return
        step, values = self._step, {name: float(value) for name, value in self._metrics.items()}
        self._metrics = None
        # Every process reads the same numbers, so all of them stop, before a checkpoint could hold the damage.
        if not np.isfinite(values['loss'] + values['gradient_norm']):
            raise UserError(
                f'the loss is {values["loss"]} and the gradient norm {values["gradient_norm"]} at step {step}: lower '
                'config.optimizer.learning_rate, or look at the pairs of that step in examples.jsonl'
            )
        if self._log is None:
            return
        self._pairs += int(values['pairs'])
        if (step + 1) % self._every == 0 or step == self._last:
            self._log.metrics(step, values)
        seconds = max(time.monotonic() - self._time, 1e-9)
        note = f'loss {values["loss"]:.4f}  accuracy {values["accuracy"]:.3f}  {self._pairs / seconds:.3g} pairs/s'
        self.progress.update(step + 1, note)


def _first_state(
    config: ConfigDict, decoder: Decoder, model: ModelFolder, mesh: Mesh, checkpoints: RunCheckpoints, num_steps: int
) -> TrainState:
    """The newest checkpoint's state, or that of step 0."""
    optimizer = make_optimizer(config.optimizer, num_steps)
    abstract = abstract_state(decoder, optimizer, mesh)
    step = checkpoints.latest_step
    if step is None:
        params = load_params(decoder, model, mesh, seed=config.seed)
        layout = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
        return TrainState(_scalar(0, mesh), params, jax.jit(optimizer.init, out_shardings=layout)(params))
    params, opt_state, progress = checkpoints.restore(step, abstract.params, abstract.opt_state)
    return TrainState(_scalar(progress['step'], mesh), params, opt_state)


def _scalar(value: int, mesh: Mesh) -> jax.Array:
    return jax.device_put(np.int32(value), replicated(mesh))


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require(config, 'model.path', 'data.shards', 'data.rows')
    workdir = workdir_path(flags.FLAGS.workdir)
    # Loading NumPy files and tokenizers must not fork threads into a fight for the cores that XLA uses.
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    processes.start()
    if not train(config, workdir):
        sys.exit(STOPPED)


if __name__ == '__main__':
    define_flags()
    run(main)
