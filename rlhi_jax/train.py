"""Train a reward model, a DPO policy or an SFT control on a row plan.

    python -m rlhi_jax.train --config=configs/NAME.py[:variant] --workdir=DIR [--config.a.b=value]

A run resumes by itself from its newest checkpoint; the workdir is a model folder that `convert export`, `evaluate` and
further runs take.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax import distributed, errors
from rlhi_jax.checkpoints import ModelFolder, RunCheckpoints, abstract_with_shardings, describe_model, open_model
from rlhi_jax.config import check_config, define_flags, require, training_digest, workdir_path
from rlhi_jax.data.loader import RowOrder, RowReader, batches, in_order
from rlhi_jax.data.plan import RowPlan
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, read_json, write_json
from rlhi_jax.metrics import RunLog
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.progress import Progress
from rlhi_jax.reference import ReferenceCache, missing_rows, with_reference
from rlhi_jax.run import RowScorer, abstract_params, load_params, make_decoder, on_mesh, open_rows, sees_persona
from rlhi_jax.scoring import Params
from rlhi_jax.sharding import batch_sharding, check_fit, local_rows, make_mesh, replicated, to_global
from rlhi_jax.train_step import TrainState, learning_rate, make_gradient, make_optimizer, make_train_step


def train(config: ConfigDict, workdir: Path) -> None:
    """Run or resume a training run to its end, or to the step at which it is asked to stop.

    Raises:
      UserError: anything the user can mend, before any long work.
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
    cache = None
    if objective.uses_reference:
        cache = ReferenceCache(workdir / 'reference', reference_identity(config, model, plan))
    _claim_workdir(config, workdir, model, plan, decoder)

    checkpoints = RunCheckpoints(workdir, keep=config.checkpoint.keep)
    optimizer = make_optimizer(config.optimizer, num_steps)
    schedule = learning_rate(config.optimizer, num_steps)
    with on_mesh(mesh):
        read = reader.__getitem__
        if cache is not None:
            ref_reader = RowReader(plan, shards, template, config.ref_sees_persona)
            wanted = (row for step in range(num_steps) for row in order[step])
            fill_reference(config, cache, ref_reader, wanted, decoder, model, mesh)
            read = with_reference(reader, cache)
        state = _first_state(config, decoder, model, optimizer, mesh, checkpoints)
        gradient = make_gradient(
            decoder,
            objective,
            config.get(config.objective),
            accumulate=config.train.accumulate,
            chunk=config.model.logprob_chunk,
        )
        step_fn = jax.jit(make_train_step(gradient, optimizer, schedule), donate_argnums=0)
        first_step = int(state.step)
        sharding = batch_sharding(mesh)
        places = local_rows(sharding, config.train.batch_rows)
        stream = batches(
            read, order, first_step=first_step, num_steps=num_steps, local_rows=places, threads=config.data.threads
        )
        log = RunLog(workdir, next_step=first_step) if distributed.is_main() else None
        stop = distributed.Preemption()
        pending = _Pending(config, log, num_steps, first_step)
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
                    checkpoints.save(
                        done, state.params, state.opt_state, {'step': done, 'loader': done, 'seed': config.seed}
                    )
                if stopping:
                    break
        checkpoints.close()
    if log:
        log.close()
        reached = int(state.step)
        rest = 'the same command goes on from there' if reached < num_steps else 'the run is complete'
        print(f'{workdir}: saved at step {reached} of {num_steps}; {rest}')


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
        if self._log is None:
            return
        self._pairs += int(values['pairs'])
        if not np.isfinite(values['loss']):
            raise UserError(
                f'the loss is {values["loss"]} at step {step}: lower config.optimizer.learning_rate, or look at the '
                'pairs of that step in examples.jsonl'
            )
        if (step + 1) % self._every == 0 or step == self._last:
            self._log.metrics(step, values)
        seconds = max(time.monotonic() - self._time, 1e-9)
        note = f'loss {values["loss"]:.4f}  accuracy {values["accuracy"]:.3f}  {self._pairs / seconds:.3g} pairs/s'
        self.progress.update(step + 1, note)


def reference_identity(config: ConfigDict, model: ModelFolder, plan: RowPlan) -> dict[str, Any]:
    """What cached reference log-probabilities depend on."""
    return dict(
        model=model.weights,
        data=plan.identity['data'],
        template=plan.identity['template'],
        dtype=config.model.dtype,
        ref_sees_persona=config.ref_sees_persona,
    )


def fill_reference(
    config: ConfigDict,
    cache: ReferenceCache,
    reader: RowReader,
    rows: Iterable[int],
    decoder: Decoder,
    model: ModelFolder,
    mesh: Mesh,
) -> None:
    """Score with the initial policy what the cache lacks of some rows, on the same mesh and path as training."""
    missing = missing_rows(cache, reader, rows)
    if not missing:
        return
    params = load_params(decoder, model, mesh, seed=config.seed)
    order = in_order(missing, config.train.batch_rows // config.train.accumulate)
    with Progress('reference', len(order), unit='batches', enabled=distributed.is_main()) as progress:
        scored = RowScorer(config, decoder, mesh)(params, reader, order)
        for done, (rows, logp) in enumerate(zip(order, scored, strict=True), start=1):
            cache.add_rows(reader, rows, logp, write=distributed.is_main())
            progress.update(done)
    distributed.barrier('reference')


def _first_state(
    config: ConfigDict,
    decoder: Decoder,
    model: ModelFolder,
    optimizer: Any,
    mesh: Mesh,
    checkpoints: RunCheckpoints,
) -> TrainState:
    """The newest checkpoint's state, or that of step 0."""
    abstract = abstract_params(decoder, mesh)
    shapes = jax.eval_shape(optimizer.init, abstract)
    shardings = _like_params(shapes, abstract, jax.tree.map(lambda x: x.sharding, abstract), replicated(mesh))
    step = checkpoints.latest_step
    if step is None:
        params = load_params(decoder, model, mesh, seed=config.seed)
        opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
        return TrainState(_scalar(0, mesh), params, opt_state)
    params, opt_state, progress = checkpoints.restore(step, abstract, abstract_with_shardings(shapes, shardings))
    return TrainState(_scalar(progress['step'], mesh), params, opt_state)


def _like_params(shapes: Any, params: Params, shardings: Any, otherwise: Any) -> Any:
    """Shardings of an optimizer state: a subtree shaped like the parameters is laid out as they are."""
    treedef = jax.tree.structure(params)

    def is_params(subtree):
        return jax.tree.structure(subtree) == treedef

    return jax.tree.map(lambda x: shardings if is_params(x) else otherwise, shapes, is_leaf=is_params)


def _scalar(value: int, mesh: Mesh) -> jax.Array:
    return jax.device_put(np.int32(value), replicated(mesh))


def _claim_workdir(config: ConfigDict, workdir: Path, model: ModelFolder, plan: RowPlan, decoder: Decoder) -> None:
    """Make the workdir this run's, or refuse if it holds another's."""
    _, settings = training_digest(config)
    run = {'config': settings, 'rows': plan.digest, 'model': model.weights}
    path = workdir / 'run.json'
    if workdir.is_file() or (workdir / 'params').exists():
        kind = 'a file' if workdir.is_file() else "an imported model's folder"
        raise UserError(f'--workdir={workdir} is {kind}: name another')
    if path.exists():
        stored = read_json(path, f'remove {workdir} or name another --workdir', fields=())
        for name, value in _flat(run):
            if dict(_flat(stored)).get(name) != value:
                raise UserError(
                    f'--workdir={workdir} holds a run with another {name} '
                    f'({dict(_flat(stored)).get(name)!r}, now {value!r}): undo the change, or name another --workdir'
                )
    distributed.barrier('workdir')
    if distributed.is_main() and not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        source = f'{config.objective} on {model.path.name}'
        described = dict(weights=digest(run), tokens=model.tokens, source=source, tokenizer=model.tokenizer_path)
        describe_model(workdir, decoder.spec, **described)
        write_json(path, run)
    distributed.barrier('described')


def _flat(value: Any, name: str = '') -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [item for key in sorted(value) for item in _flat(value[key], f'{name}.{key}' if name else key)]


def main() -> None:
    config = check_config(flags.FLAGS.config)
    require(config, 'model.path', 'data.shards', 'data.rows')
    workdir = workdir_path(flags.FLAGS.workdir)
    # Loading NumPy files and tokenizers must not fork threads into a fight for the cores that XLA uses.
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    distributed.start()
    train(config, workdir)


if __name__ == '__main__':
    define_flags()
    errors.run(main)
