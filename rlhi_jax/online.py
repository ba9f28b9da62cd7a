"""Train a policy online: it answers requests, a judge scores the answers, and the best and worst answers train it.

    python -m rlhi_jax.online --config=configs/NAME.py[:variant] --workdir=DIR [--config.a.b=value]

Training consists of rounds. In each round,

1. the policy answers `config.online.prompts` requests with its current weights, `config.candidates.samples` times each;
2. the judge that `config.candidates.scorer` names scores the answers: a reward model, or the initial policy;
3. the best and the worst answer to each request become a pair, unless their scores are too close (`config.pairs`) or
   one of them is a refusal;
4. the policy takes a step on each batch of these pairs.

A round of one batch is online DPO, and a round of several batches is semi-online DPO (arXiv 2506.21495). The requests
are those of the stage `candidates`. `config.train.epochs` is the number of passes over them.

WORKDIR/rounds has a folder for each round, with its answers and pairs. A run resumes automatically from its newest
checkpoint and from these folders. Its workdir is a model folder, as that of `rlhi_jax.train`.
"""

from rlhi_jax.cli.program import define_flags, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    start()

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.core.records import PromptRecord
from data_pipelines.preferences.candidates import by_policy, by_reward_model, judgeable, one_tree
from data_pipelines.preferences.persona_rise import Entry, persona_pool
from data_pipelines.preferences.prompts import prompts_reader
from data_pipelines.preferences.rounds import Judge, RoundFolder, rounds_identity
from rlhi_jax.config.loop_paths import training_config, with_paths
from rlhi_jax.data.loader import RowOrder, RowReader, batches, in_order
from rlhi_jax.data.plan import RowPlan, make_plan
from rlhi_jax.data.rows import Row, capacities
from rlhi_jax.data.shards import View
from rlhi_jax.io.errors import STOPPED, Stopped, UserError
from rlhi_jax.io.files import digest
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import ModelFolder, RunCheckpoints, open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import check_fit, load_params, whole_params
from rlhi_jax.models.resident import RESIDENT
from rlhi_jax.parallel import processes
from rlhi_jax.parallel.crew import shared
from rlhi_jax.parallel.sharding import batch_sharding, local_mesh, local_rows, on_mesh, to_global
from rlhi_jax.rounds.parts import State, state_of_run
from rlhi_jax.sampling.generator import Generator
from rlhi_jax.sampling.sampler import Sampler, check_sampling
from rlhi_jax.sampling.settings import sampling
from rlhi_jax.scoring.candidates import CandidateScorer
from rlhi_jax.scoring.rows import RowScorer
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.metrics import LateMetrics, RunLog
from rlhi_jax.training.model import on_devices, reads_reference, sees_persona
from rlhi_jax.training.online import beside_reference, check_judge, check_settings, copied
from rlhi_jax.training.rows import abstract_batch
from rlhi_jax.training.state import adapters_and_frozen, first_state
from rlhi_jax.training.step import jit_train_step, make_optimizer
from rlhi_jax.training.workdir import claim_workdir, refuse_another_run, run_identity


class Position(NamedTuple):
    """How far a run has come: steps taken, rounds finished, and steps taken in the round after these."""

    step: int = 0
    round: int = 0
    offset: int = 0


class Run(NamedTuple):
    """A run that has passed all checks and is ready to start or resume.

    Attributes:
      prompts: the requests.
      pool: users and their personas, among whom the policy as the judge finds strangers.
      rounds: the indices of each round's requests; -1 stands for none.
    """

    config: ConfigDict
    workdir: Path
    model: ModelFolder
    decoder: Decoder
    mesh: Mesh
    prompts: Sequence[PromptRecord]
    pool: Sequence[Entry]
    rounds: RowOrder
    template: ChatTemplate
    checkpoints: RunCheckpoints

    def folder(self, number: int) -> RoundFolder:
        """Return a round's folder; in later passes over the requests, their ids say so and get different answers."""
        size, count = self.config.online.prompts, len(self.prompts)
        prompts = []
        for place, index in enumerate(self.rounds[number], start=number * size):
            if index >= 0:
                name, passed = self.prompts[index]['id'], place // count
                prompts.append(self.prompts[index] | dict(id=f'{name} pass {passed + 1}' if passed else name))
        return RoundFolder(self.workdir / 'rounds' / f'{number + 1:06d}', prompts, self.config)

    def saved(self) -> Position:
        """Return how far the run's newest checkpoint has come."""
        step = self.checkpoints.latest_step
        progress = {} if step is None else self.checkpoints.progress(step)
        return Position(*(progress.get(name, 0) for name in Position._fields))

    def ends_at(self, reached: Position) -> bool:
        """Return whether the run is complete at a position."""
        most = self.config.train.max_steps
        return reached.round == self.rounds.num_steps or bool(most and reached.step >= most)


def set_up(config: ConfigDict, workdir: Path) -> Run:
    """Open everything that a run needs, check that all parts fit together, and claim the workdir.

    Raises:
      UserError: a setting, the model or the workdir does not suit an online run; the message says why.
    """
    check_settings(config)
    check_judge(config)
    model = open_model(config.model.path)
    mesh, decoder = on_devices(config, model)
    if config.rows.tokens > model.spec.max_positions:
        raise UserError(
            f'config.rows.tokens is {config.rows.tokens}, but {model.path} reads at most {model.spec.max_positions} '
            f'tokens: lower it to at most {model.spec.max_positions}'
        )
    check_sampling(model, sampling(config), local_mesh(config.mesh.to_dict()))
    judge = open_model(config.candidates.reward_model) if config.candidates.scorer == 'reward_model' else model
    check_fit(mesh, judge.spec, config.eval.batch_rows, 'config.eval.batch_rows')
    prompts, pool = _requests(config)
    identity = _identity(config, model, prompts, pool)
    refuse_another_run(workdir, identity)
    claim_workdir(workdir, identity, model, decoder.spec, decoder.lora)
    return Run(
        config=config,
        workdir=workdir,
        model=model,
        decoder=decoder,
        mesh=mesh,
        prompts=prompts,
        pool=pool,
        rounds=RowOrder(len(prompts), config.online.prompts, config.train.epochs, config.seed),
        template=ChatTemplate.load(model.tokenizer_path),
        checkpoints=RunCheckpoints(workdir, keep=config.checkpoint.keep),
    )


def _requests(config: ConfigDict) -> tuple[list[PromptRecord], list[Entry]]:
    """Return the requests to answer, and the users and personas among whom the policy as the judge finds strangers."""
    counts: Counter = Counter()
    prompts = list(prompts_reader(config)(counts))
    pool = persona_pool(prompts)
    if config.candidates.scorer == 'policy':
        prompts = list(judgeable(pool, prompts, counts))
    if not prompts:
        raise UserError(f'there are no requests to answer ({dict(counts)}): add requests, or users with personas')
    return prompts, pool


def _identity(config: ConfigDict, model: ModelFolder, *requests: Sequence) -> dict[str, Any]:
    return run_identity(config, model) | dict(online=rounds_identity(config, digest(*requests)))


class Trainer:
    """The models of a run on its devices, and the run's rounds.

    Attributes:
      state: the policy's training state.
      reached: how far the run has come.
    """

    def __init__(self, run: Run, reached: Position):
        self.run, config = run, run.config
        load = functools.partial(load_params, run.decoder, run.model, run.mesh, seed=config.seed)
        self._uses_reference, self._syncs = reads_reference(config), bool(config.online.sync_reference)
        self._optimizer = make_optimizer(config.optimizer, num_steps=1)
        if self._syncs:
            self._optimizer = beside_reference(self._optimizer)
        with on_mesh(run.mesh):
            adapters, self._frozen = adapters_and_frozen(run.decoder, load)
            self.state, _ = first_state(
                run.decoder, self._optimizer, run.mesh, run.checkpoints, lambda: adapters or load()
            )
            by_policy = config.candidates.scorer == 'policy'
            needs_initial = by_policy or (self._uses_reference and not self._syncs)
            self._initial = (self._frozen or load()) if needs_initial else None
            self._judge = self._make_judge()
            self._score = RowScorer(config, run.decoder, run.mesh, scope='reference')
            self._step = None
        self.reached = reached
        self._saved, self._sampler = self.reached.step, None
        self._stop = processes.Preemption()

    def train(self) -> bool:
        """Run the remaining rounds, or stop early if asked to; return whether the run is complete."""
        run, config = self.run, self.run.config
        log = RunLog(run.workdir, next_step=self.reached.step) if processes.is_main() else None
        rounds = Progress('online', run.rounds.num_steps, unit='rounds', done=self.reached.round, enabled=bool(log))
        with rounds:
            metrics = LateMetrics(config.log.every_steps, log, lambda _, note: rounds.update(self.reached.round, note))
            try:
                while not self.run.ends_at(self.reached):
                    self._train_round(metrics, log)
            except Stopped:
                pass
            metrics.flush(last=self.run.ends_at(self.reached))
        self._save()
        run.checkpoints.close()
        self._stop.release()
        if log:
            log.close()
        return self.run.ends_at(self.reached)

    def _train_round(self, metrics: LateMetrics, log: RunLog | None) -> None:
        """Run the rest of a round."""
        run, config, (step, number, first) = self.run, self.run.config, self.reached
        if self._syncs and number and not first and number % config.online.sync_reference == 0:
            self.state = self.state.replace(opt_state=(self.state.opt_state[0], copied(self.state.params)))
        folder = run.folder(number)
        if not folder.is_finished():
            self._answer(folder)
            says = folder.pair(self._judge)
            if log:
                print(_in_words(number + 1, run.rounds.num_steps, says), flush=True)
        plan, reader, seen_by_reference = self._rows(folder)
        order = RowOrder(len(plan.rows), config.train.batch_rows, 1, config.seed)
        read = self._with_reference(reader, seen_by_reference) if first < order.num_steps else reader.__getitem__
        sharding = batch_sharding(run.mesh)
        local = local_rows(sharding, config.train.batch_rows)
        how = dict(first_step=first, num_steps=order.num_steps, local_rows=local, threads=config.data.threads)
        stream = batches(read, order, **how)
        for offset in range(first, order.num_steps):
            self._stop_if_asked(at_step=True)
            batch = to_global(next(stream), local, sharding, config.train.batch_rows)
            if log:
                log.examples(step, plan.names_in(order[offset]))
            with on_mesh(run.mesh):
                self.state, values = self._compiled_step()(self.state, batch, self._frozen)
            metrics.push(step, values)
            step += 1
            ends = offset + 1 == order.num_steps
            self.reached = Position(step, number + 1) if ends else Position(step, number, offset + 1)
            if step % config.checkpoint.every_steps == 0:
                metrics.flush(last=self.run.ends_at(self.reached))
                self._save()
            if self.run.ends_at(self.reached):
                return
            self._stop_if_asked(at_step=True)  # before the next round is sampled
        self.reached = Position(step, number + 1)

    def _answer(self, folder: RoundFolder) -> None:
        """Sample the answers that a round's folder lacks, with the policy's current weights."""
        run, missing = self.run, folder.missing()
        if not missing:
            return
        self._stop_if_asked()
        mesh = local_mesh(run.config.mesh.to_dict())
        with on_mesh(run.mesh):
            params = whole_params(run.decoder, self._frozen, self.state.params, mesh)
        if self._sampler is None:
            dtype = run.config.model.dtype
            self._sampler = Sampler(run.model, sampling(run.config), mesh, dtype=dtype, params=params)
        else:
            self._sampler.use(params)
        del params  # with adapters, a merged copy
        total = sum(prompt.samples for prompt in missing[processes.index() :: processes.count()])
        with Progress('answers', total, unit='replies', enabled=processes.is_main()) as progress:
            for done in folder.sample(Generator(self._sampler), missing):
                progress.update(done)
                self._stop_if_asked()
        self._sampler.release()  # training needs the memory

    def _make_judge(self) -> Judge:
        """Return the function that scores candidates, on the devices of all processes."""
        run, config = self.run, self.run.config
        if config.candidates.scorer == 'reward_model':
            path = config.candidates.reward_model
            scorer = CandidateScorer(config, path, one_tree(config), sees_persona=config.rm_sees_persona, mesh=run.mesh)
            return functools.partial(by_reward_model, scorer)
        scorer = CandidateScorer(
            config, config.model.path, one_tree(config), sees_persona=True, mesh=run.mesh, params=self._initial
        )
        return functools.partial(by_policy, scorer, pool=run.pool, most=config.candidates.strangers)

    def _rows(self, folder: RoundFolder) -> tuple[RowPlan, RowReader, RowReader]:
        """Return the row plan of a round's pairs, and readers of its rows for the policy and the reference model."""
        run, config, trees = self.run, self.run.config, folder.trees()
        view = View(trees, range(len(trees)), lambda tree: tree, digest([tree.id for tree in trees]))
        plan = make_plan(view, run.template, capacities(config), may_be_empty=True)
        switches = sees_persona(config), config.ref_sees_persona
        return plan, *(RowReader(plan, view, run.template, switch) for switch in switches)

    def _with_reference(self, reader: RowReader, seen_by_reference: RowReader) -> Callable[[int], Row]:
        """Return a function that reads a row by its number, with any log-probabilities under the reference model."""
        if not self._uses_reference:
            return reader.__getitem__
        run, config = self.run, self.run.config
        params = self.state.opt_state[1] if self._syncs else self._initial
        order = in_order(range(len(reader)), config.train.batch_rows // config.train.accumulate)
        with on_mesh(run.mesh):
            logp_R = np.concatenate(list(self._score(params, seen_by_reference, order)))

        def read(row: int) -> Row:
            return reader[row]._replace(reference_logp_R=logp_R[row] if row >= 0 else np.zeros_like(logp_R[0]))

        return read

    def _compiled_step(self) -> Callable:
        if self._step is None:
            run = self.run
            shapes = abstract_batch(run.config, run.mesh, run.config.train.batch_rows)
            step = jit_train_step(run.config, run.decoder, self.state, run.mesh, 1, self._optimizer)
            self._step = step.lower(self.state, shapes, self._frozen).compile()
        return self._step

    def _save(self) -> None:
        if self.reached.step > self._saved:
            progress = self.reached._asdict() | dict(seed=self.run.config.seed)
            self.run.checkpoints.save(self.reached.step, self.state.params, self.state.opt_state, progress)
            self._saved = self.reached.step

    def _stop_if_asked(self, *, at_step: bool = False) -> None:
        """Raise Stopped if the run was asked to stop. Several processes agree on that only before and after a step."""
        if (at_step or processes.count() == 1) and self._stop.reached(self.reached.step):
            raise Stopped


def _in_words(number: int, rounds: int, says: dict[str, Any]) -> str:
    counts = says['counts']
    score = '' if says['mean_score'] is None else f'; mean score {says["mean_score"]:.3f}'
    numbers = f'{counts["prompts"]} requests, {counts["replies"]} answers, {counts["pairs"]} pairs'
    return f'round {number} of {rounds}: {numbers}{score}'


def train_online(config: ConfigDict, workdir: Path, begins: Callable[[], None] = lambda: None) -> bool:
    """Start or resume an online run, and train until it is complete or is asked to stop.

    Arguments, result and errors are as in `rlhi_jax.train.train`. It is also an error if no request has led to a pair.
    """
    run = set_up(config, workdir)
    if complete := run.ends_at(reached := run.saved()):
        run.checkpoints.close()
    else:
        begins()
        RESIDENT.release()  # a stage in this process may have left a model in memory
        trainer = Trainer(run, reached)
        complete, reached = trainer.train(), trainer.reached
    if complete and not reached.step:
        raise UserError(
            f'{workdir}: no request led to a pair (see the counts in rounds/*/round.json): raise '
            'config.candidates.samples, and use another --workdir'
        )
    if processes.is_main():
        rest = 'the run is complete' if complete else 'the same command resumes from there'
        rounds = f'after {reached.round} of {run.rounds.num_steps} rounds'
        saved = f'saved at step {reached.step}' if reached.step else 'stopped before the first step'
        print(f'{workdir}: {saved}, {rounds}; {rest}', flush=True)
    return complete


@shared
def join_online(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """Run one of the loop's online runs in this process, together with the other processes (see `join_training`)."""
    workdir, objective = Path(arguments['workdir']), arguments['objective']
    train_online(training_config(with_paths(config, workdir), workdir, objective), workdir / objective / 'run')


def online_state(config: ConfigDict, workdir: Path) -> State:
    """Return whether a workdir contains the online run that a config describes (see `rlhi_jax.train.run_state`)."""

    def check() -> None:
        refuse_another_run(workdir, _identity(config, open_model(config.model.path), *_requests(config)))

    return state_of_run(workdir, check)


def main() -> None:
    config = load_config(flags.FLAGS.config)
    workdir = workdir_path(flags.FLAGS.workdir)
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')  # tokenizer threads would compete with XLA for the cores
    processes.start()
    if not train_online(config, workdir):
        sys.exit(STOPPED)


if __name__ == '__main__':
    run(main)
