"""Train a reward model, or a policy with DPO, SFT or another objective, on pairs of replies packed into rows.

    python -m rlhi_jax.train --config=configs/NAME.py[:variant] --workdir=DIR [--config.a.b=value]

`config.data.shards` contains the pairs, grouped into interaction trees. `config.data.rows` says which trees share a
row.

A run resumes automatically from its newest checkpoint. Its workdir is a model folder that `convert export`, `evaluate`
and further runs can use. `--config.log.profile_steps=N` writes a profile of N steps to WORKDIR/profile.
"""

from rlhi_jax.cli.program import define_flags, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    start()

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.config import require
from rlhi_jax.config.loop_paths import training_config, with_paths
from rlhi_jax.data.loader import RowOrder, RowReader, batches
from rlhi_jax.data.rows import Row
from rlhi_jax.io.errors import STOPPED
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import ModelFolder, RunCheckpoints, open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params, load_params
from rlhi_jax.models.resident import RESIDENT
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel import processes
from rlhi_jax.parallel.crew import shared
from rlhi_jax.parallel.sharding import batch_sharding, local_rows, on_mesh, to_global
from rlhi_jax.rounds.parts import State, state_of_run
from rlhi_jax.scoring.reference import ReferenceCache, fill_reference, reference_identity, with_reference
from rlhi_jax.training.metrics import LateMetrics, RunLog, trim_logs
from rlhi_jax.training.model import on_devices, reads_reference, sees_persona
from rlhi_jax.training.profile import StepProfiler
from rlhi_jax.training.rows import abstract_batch, open_rows
from rlhi_jax.training.state import adapters_and_frozen, first_state
from rlhi_jax.training.step import TrainState, jit_train_step, make_optimizer
from rlhi_jax.training.workdir import claim_workdir, refuse_another_run, run_identity


class Run(NamedTuple):
    """A training run that has passed all checks and is ready to start or resume.

    Attributes:
      rows: the row numbers in each step's batch.
      reader: reads rows for the model being trained.
      reference_reader: reads rows for the reference model.
      reference: cached log-probabilities under the reference model; None if the objective uses no reference, or if the
        train step computes them.
    """

    config: ConfigDict
    workdir: Path
    model: ModelFolder
    decoder: Decoder
    mesh: Mesh
    rows: RowOrder
    num_steps: int
    reader: RowReader
    reference_reader: RowReader
    reference: ReferenceCache | None
    checkpoints: RunCheckpoints


def train(config: ConfigDict, workdir: Path, begins: Callable[[], None] = lambda: None) -> bool:
    """Start or resume a training run, and train until the run is complete or is asked to stop.

    Args:
      config: the settings.
      workdir: the run's folder.
      begins: a function that is called before the first step, if there are steps left.

    Returns:
      Whether the run is complete.

    Raises:
      UserError: the configuration or inputs are invalid (checked before training starts), or the loss or gradient
        becomes non-finite during training.
    """
    run = set_up(config, workdir)
    if run.checkpoints.latest_step == run.num_steps:
        run.checkpoints.close()
        if processes.is_main():
            trim_logs(workdir, next_step=run.num_steps)
        return _say(run, run.num_steps)
    begins()
    RESIDENT.release()  # a stage in this process may have left a model in memory
    with on_mesh(run.mesh):
        load = functools.partial(load_params, run.decoder, run.model, run.mesh, seed=config.seed)
        adapters, frozen = adapters_and_frozen(run.decoder, load)
        read = read_with_reference(run, lambda: frozen or load())
        optimizer = make_optimizer(config.optimizer, run.num_steps)
        state, _ = first_state(run.decoder, optimizer, run.mesh, run.checkpoints, lambda: adapters or load())
        reached = int(loop(run, read, state, frozen).step)
    return _say(run, reached)


@shared
def join_training(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """Run one of the loop's training runs in this process, together with the other processes.

    `arguments` contains the loop's workdir and the objective.
    """
    workdir, objective = Path(arguments['workdir']), arguments['objective']
    train(training_config(with_paths(config, workdir), workdir, objective), workdir / objective / 'run')


def _say(run: Run, reached: int) -> bool:
    """Print the step that a run has reached, and return whether the run is complete."""
    if processes.is_main():
        rest = 'the same command resumes from there' if reached < run.num_steps else 'the run is complete'
        print(f'{run.workdir}: saved at step {reached} of {run.num_steps}; {rest}', flush=True)
    return reached == run.num_steps


def run_state(config: ConfigDict, workdir: Path) -> State:
    """Return whether a workdir contains the run that a config describes."""

    def check() -> None:
        model = open_model(config.model.path)
        plan, *_ = open_rows(config, model)
        refuse_another_run(workdir, run_identity(config, model) | {'rows': plan.digest})

    return state_of_run(workdir, check)


def set_up(config: ConfigDict, workdir: Path) -> Run:
    """Open everything that a run needs, check that all parts fit together, and claim the workdir."""
    model = open_model(config.model.path)
    plan, shards, template = open_rows(config, model)
    with_margin = shards.count('pairs_with_margin')
    if with_margin and not OBJECTIVES[config.objective].uses_margin and processes.is_main():
        print(f'config.objective: {config.objective} ignores the margins of {with_margin} pairs')
    mesh, decoder = on_devices(config, model)
    rows = RowOrder(len(plan.rows), config.train.batch_rows, config.train.epochs, config.seed)
    identity = run_identity(config, model) | {'rows': plan.digest}
    refuse_another_run(workdir, identity)
    reference = None
    if reads_reference(config):
        folder = Path(config.data.reference) if config.data.reference else workdir / 'reference'
        reference = ReferenceCache(folder, reference_identity(config, model, plan))
    claim_workdir(workdir, identity, model, decoder.spec, decoder.lora)
    return Run(
        config=config,
        workdir=workdir,
        model=model,
        decoder=decoder,
        mesh=mesh,
        rows=rows,
        num_steps=min(rows.num_steps, config.train.max_steps or rows.num_steps),
        reader=RowReader(plan, shards, template, sees_persona(config)),
        reference_reader=RowReader(plan, shards, template, config.ref_sees_persona),
        reference=reference,
        checkpoints=RunCheckpoints(workdir, keep=config.checkpoint.keep),
    )


def read_with_reference(run: Run, load: Callable[[], Params]) -> Callable[[int], Row]:
    """Return a function that reads a row by its number.

    If the run has a reference cache, the rows include log-probabilities under the reference model. Values that the
    cache lacks are computed first, with the parameters that `load` returns.
    """
    if run.reference is None:
        return run.reader.__getitem__
    needed = (row for step in range(run.num_steps) for row in run.rows[step])
    fill_reference(run.config, run.reference, run.reference_reader, needed, run.decoder, load, run.mesh)
    return with_reference(run.reader, run.reference)


def loop(run: Run, read: Callable[[int], Row], state: TrainState, frozen: Params) -> TrainState:
    """Run the remaining steps, or stop early if asked to, and return the state after the last step that ran.

    Metrics are logged and checkpoints are saved along the way.
    """
    config, first_step = run.config, int(state.step)
    sharding = batch_sharding(run.mesh)
    local = local_rows(sharding, config.train.batch_rows)
    stream = batches(
        read, run.rows, first_step=first_step, num_steps=run.num_steps, local_rows=local, threads=config.data.threads
    )
    log = RunLog(run.workdir, next_step=first_step) if processes.is_main() else None
    stop = processes.Preemption()
    progress = Progress('train', run.num_steps, unit='steps', done=first_step, enabled=log is not None)
    pending = LateMetrics(config.log.every_steps, log, lambda step, note: progress.update(step + 1, note))
    step_fn = _compiled_step(run, state, frozen) if first_step < run.num_steps else None
    with progress, StepProfiler(run.workdir / 'profile', config.log.profile_steps) as profiler:
        for step in range(first_step, run.num_steps):
            batch = to_global(next(stream), local, sharding, config.train.batch_rows)
            if log:
                log.examples(step, run.reader.plan.names_in(run.rows[step]))
            state, metrics = step_fn(state, batch, frozen)
            profiler.after_step(metrics)
            pending.push(step, metrics)
            stopping = stop.reached(step)
            done = step + 1
            if done == run.num_steps or stopping or done % config.checkpoint.every_steps == 0:
                pending.flush(last=done == run.num_steps)
                run.checkpoints.save(done, state.params, state.opt_state, {'step': done, 'seed': config.seed})
            if stopping:
                break
    run.checkpoints.close()
    stop.release()
    if log:
        log.close()
    return state


def _compiled_step(run: Run, state: TrainState, frozen: Params) -> Callable:
    """Return the train step, compiled for one shape and layout of inputs. It rejects all other inputs."""
    shapes = abstract_batch(run.config, run.mesh, run.config.train.batch_rows)
    return (
        jit_train_step(run.config, run.decoder, state, run.mesh, run.num_steps).lower(state, shapes, frozen).compile()
    )


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require(config, 'model.path', 'data.shards', 'data.rows')
    workdir = workdir_path(flags.FLAGS.workdir)
    # Tokenizer threads would compete with XLA for the cores.
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    processes.start()
    if not train(config, workdir):
        sys.exit(STOPPED)


if __name__ == '__main__':
    run(main)
