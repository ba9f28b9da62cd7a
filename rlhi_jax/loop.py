"""Runs one round of RLHI, from conversations to a reward model, a policy, evaluations and Hugging Face folders.

    python -m rlhi_jax.loop --config=configs/NAME.py[:variant] --workdir=DIR [--redo[=STAGE]] [--yes]

The loop has several parts, which run one after another. Each part is a stage from `data_pipelines` or a program from
`rlhi_jax`, and writes to its own folder in the workdir. Finished work is kept and interrupted work resumes, so the same
command continues from any point. WORKDIR/report.json contains the results so far and, until the loop has finished, the
part that it has reached. WORKDIR/card/card.md begins with the same information. Both files are written before each part
that has work to do, so they also show which part a killed loop had reached.

After a change to the data, to a persona or to a setting, the loop stops at the first folder that is out of date. With
--redo, it lists all such folders, asks once for confirmation, and remakes them in order. --redo=STAGE also reruns that
stage, even if it is up to date.

`config.loop.method` selects the source of the preference pairs:

    rewrites   replies rewritten in response to users' feedback (see also `config.pairs.against`)
    rewards    the best and worst of N sampled replies, scored by a reward model: `config.candidates.reward_model`, or
               one that the loop trains on the rewrites
    both       rewrites and rewards together
    oracle     the best and worst of N sampled replies, scored by the simulated users' checkers: an upper bound that
               needs no reward model

With `config.online.prompts` above 0, the method `rewards` trains online (`rlhi_jax.online`). If held-out users can
judge, the stage `gate` decides at the end whether the new policy is promoted, and WORKDIR/model links to the policy in
force.
"""

from absl import flags

from rlhi_jax.cli.program import define_flags, define_optional, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    define_optional('redo', 'Make again what is out of date; with =STAGE, also that stage and what depends on it.')
    flags.DEFINE_bool('yes', False, 'With --redo: do not ask for confirmation.')
    start()

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import (
    candidates,
    card,
    follow_ups,
    gate,
    ingest,
    oracle_scores,
    pairs,
    personas,
    rewrites,
    rows,
    satisfaction,
    shards,
    strangers,
)
from data_pipelines.checks.data import check_data
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.machine import check_machine
from data_pipelines.core.stage import Stage, Task
from data_pipelines.preferences.reading import pairs_file, pairs_to_read
from data_pipelines.simulator.summary import summarise
from data_pipelines.simulator.users import held_out_tastes
from data_pipelines.sources import simulated
from data_pipelines.teacher.generation import model_identity
from rlhi_jax.config.loop_paths import (
    REWRITTEN,
    is_gated,
    is_online,
    method_of,
    stage_config,
    training_config,
    users_judge,
    users_talk,
    with_paths,
)
from rlhi_jax.convert import export_model
from rlhi_jax.evaluate import evaluations
from rlhi_jax.evaluation.tables import print_report
from rlhi_jax.io.errors import STOPPED, NothingToEvaluate, Stopped, UserError, one_line
from rlhi_jax.io.files import discard, read_json, write_json
from rlhi_jax.models.checkpoints import saved_steps
from rlhi_jax.online import join_online, online_state, train_online
from rlhi_jax.parallel.crew import call_together, run_shared
from rlhi_jax.rounds.in_force import put_in_force, withdraw
from rlhi_jax.rounds.parts import Part, State, chosen, confirm, to_redo
from rlhi_jax.rounds.settings import check_settings, claim
from rlhi_jax.rounds.times import timed, times_in_words
from rlhi_jax.rounds.words import models, notes, summary
from rlhi_jax.train import join_training, run_state, train


class Round:
    """One round of the loop, in a workdir.

    Attributes:
      config: the loop's config.
      workdir: the round's folder.
      report: the results so far, in the format of report.json.
      reached: the name and number of the part that the loop has reached, and the number of parts.
      at_work: whether the report and the card must be written again, because one is missing or a part had work to do.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.report: dict[str, Any] = dict(method=config.loop.method, funnel={})
        self.reached, self._noted = {}, {}
        self.at_work = not all((workdir / name).exists() for name in ('report.json', 'card/card.md'))

    def parts(self) -> list[Part]:
        """Return the parts of the round, in the order in which they run."""
        config, method = self.config, method_of(self.config)
        parts: list[Part] = []
        if users_talk(config):
            parts.append(self._stage(simulated.STAGE))
        if not config.loop.oracle_personas:
            parts += [
                self._stage(ingest.STAGE, 'sources.simulated'),
                self._stage(follow_ups.STAGE, 'ingest'),
                self._stage(personas.STAGE, 'ingest', 'follow_ups'),
            ]
        for stage in (rewrites.STAGE, strangers.STAGE):
            if method.uses_rewrites and stage.name in REWRITTEN[config.pairs.against]:
                parts.append(self._stage(stage, 'ingest', 'follow_ups', 'personas'))
        for objective in method.trains:
            if objective == method.trains[-1] and 'candidates' in method.sources and not is_online(config, objective):
                trained = (f'{earlier}: training' for earlier in method.trains[:-1])
                parts.append(self._stage(candidates.STAGE, 'sources.simulated', 'ingest', 'personas', *trained))
                if config.loop.method == 'oracle':
                    parts.append(self._stage(oracle_scores.STAGE, 'candidates'))
            parts += self._training(objective)
        trained = f'{method.trains[-1]}: training'
        whens = ('before', 'after', *(('gate before', 'gate after') if users_judge(config) else ()))
        if config.loop.simulated:
            for when in whens:
                reads = ('sources.simulated', 'personas', *([trained] if when.endswith('after') else []))
                parts.append(self._stage(satisfaction.STAGE, *reads, name=when))
        if is_gated(config):
            judges = (f'{method.trains[-1]}: pairs', *(f'satisfaction {when}' for when in whens))
            parts.append(self._stage(gate.STAGE, 'ingest', 'follow_ups', 'personas', trained, *judges))
        parts += [self._export(objective) for objective in method.trains]
        return [*parts, self._stage(card.STAGE, *(part.name for part in parts))]

    def _training(self, objective: str) -> list[Part]:
        """Return the parts that make training data, train on it, and evaluate the model; an online run is one part."""
        shards_part, run_folder = f'{objective}: shards', self.workdir / objective / 'run'
        config = training_config(with_paths(self.config, self.workdir), self.workdir, objective)
        online = is_online(config, objective)
        trained = (f'{earlier}: training' for earlier in method_of(config).trains if earlier != objective)
        inputs = ('ingest', 'follow_ups', 'personas', *trained) if online else (shards_part, f'{objective}: rows')
        training = Part(
            name=f'{objective}: training',
            folder=run_folder,
            reads=(*inputs, *(['sft: training'] if objective == 'dpo' else [])),
            state=lambda: (online_state if online else run_state)(config, run_folder),
            make=lambda replace: self._train(config, objective, replace),
            trains=True,
        )
        if online:
            return [training]
        sources = ('rewrites', 'strangers', *(('candidates', 'oracle_scores') if objective == 'dpo' else ()))
        return [
            self._stage(pairs.STAGE, *sources, objective=objective),
            self._stage(shards.STAGE, f'{objective}: pairs', objective=objective),
            self._stage(shards.STAGE, f'{objective}: pairs', objective=objective, name='validation'),
            self._stage(rows.STAGE, shards_part, objective=objective),
            training,
            Part(
                name=f'{objective}: evaluation',
                folder=run_folder / 'evaluation',
                reads=(f'{objective}: training', f'{objective}: validation'),
                state=lambda: State.MISSING,  # an evaluation finds its own stored result
                make=lambda replace: self._evaluate(config, objective),
            ),
        ]

    def _stage(self, stage: Stage, *reads: str, objective: str = '', name: str = '') -> Part:
        """Return the part that runs a stage.

        Args:
          stage: the stage.
          reads: the names of the parts whose output the stage reads; names of parts that this round lacks are ignored.
          objective: the objective of the training run that the stage belongs to; '' if it belongs to none.
          name: tells apart parts that run the same stage (see `stage_config`).
        """
        config = self.config.copy_and_resolve_references()
        if objective:
            config.objective = objective
        # Made anew each time, since it may depend on folders that the parts before have written.
        prepared = functools.partial(stage_config, config, self.workdir, stage.name, name)
        if stage.name == 'satisfaction':
            name = f'satisfaction {name}'
        part = f'{objective}: {name or stage.name}' if objective else name or stage.name
        if stage is not card.STAGE:
            stage = dataclasses.replace(stage, work=self._noting(stage.work))
        return Part(
            name=part,
            folder=Path(attrgetter(stage.output)(prepared())),
            reads=reads,
            state=lambda: stage.state(prepared()),
            make=lambda replace: self._make(stage, prepared(), part, replace),
        )

    def _noting(self, work: Callable[[Task], dict[str, int]]) -> Callable[[Task], dict[str, int]]:
        """Return a function that calls `begin` and then does the stage's work."""

        def noted_work(task: Task) -> dict[str, int]:
            self.begin()
            return work(task)

        return noted_work

    def _make(self, stage: Stage, config: ConfigDict, name: str, replace: bool) -> None:
        """Bring a stage's folder up to date, and add the stage's counts to the report."""
        if name.endswith(': validation') and not (Path(config.data.pairs) / 'validation.jsonl').stat().st_size:
            return
        try:
            self.report['funnel'][name] = stage.run(config, overwrite=replace)
        except NothingToEvaluate as error:
            discard(Path(config.data.satisfaction))  # an earlier one would be of another policy
            if not name.startswith('satisfaction gate'):  # the gate then asks others
                self.report['satisfaction_not_evaluated'] = str(error)
        if name == follow_ups.STAGE.name and method_of(self.config).uses_rewrites:
            follow_ups.require_feedback(self.report['funnel'][name])
        folders = {when: self.workdir / 'satisfaction' / when for when in ('before', 'after')}
        if name == 'satisfaction after' and 'satisfaction_not_evaluated' not in self.report:
            self.report['satisfaction'] = summarise(folders, held_out_tastes(config))
        if name == gate.STAGE.name:
            verdict = read_json(Path(config.data.gate) / 'manifest.json', 'run the same command again')['verdict']
            self.report['gate'] = verdict
            put_in_force(self.workdir, Path(config.gate.model if verdict['promoted'] else config.model.path))

    def _train(self, config: ConfigDict, objective: str, replace: bool) -> None:
        """Start or resume a training run. If `replace`, first remove any existing run and its export."""
        folder = self.workdir / objective
        if replace:
            self.begin()
            withdraw(self.workdir)  # until the gate has judged the new run
            discard(folder / 'huggingface')
            discard(folder / 'run')
        online = is_online(config, objective)
        call_together(join_online if online else join_training, dict(workdir=str(self.workdir), objective=objective))
        if not (train_online if online else train)(config, folder / 'run', self.begin):
            raise Stopped
        if online:
            self.report[objective] = dict(evaluation=None, not_evaluated='an online run holds out no pairs')
            return
        probe = read_json(Path(config.data.pairs) / 'manifest.json', 'run the same command again')['probe']
        self.report[objective] = dict(probe=probe, evaluation=None, not_evaluated='no pairs were held out')

    def _evaluate(self, config: ConfigDict, objective: str) -> None:
        """Evaluate a trained model on held-out pairs; a reward model is also evaluated before training."""
        folder = self.workdir / objective / 'run'
        if (Path(config.data.pairs) / 'validation.jsonl').stat().st_size:
            # A policy is not evaluated before training, because its implicit reward is then 0 everywhere.
            steps = dict(evaluation=saved_steps(folder)[-1]) | (dict(before=0) if objective == 'reward' else {})
            self.report[objective] |= evaluations(config, folder, steps, self.begin)

    def _export(self, objective: str) -> Part:
        """Return the part that writes a trained model as a Hugging Face folder, unless that folder exists."""
        folder = self.workdir / objective / 'huggingface'

        def make(replace: bool) -> None:
            if not folder.exists():
                self.begin()
                export_model(self.workdir / objective / 'run', folder, step=None, dtype='float32')
                print(f'wrote {folder}', flush=True)

        return Part(f'{objective}: export', folder, (f'{objective}: training',), lambda: State.MISSING, make)

    def run(self, parts: list[Part], *, redo: bool, forced: frozenset[str]) -> None:
        """Run the parts one after another.

        Args:
          parts: the parts of the loop, in the order in which `Round.parts` lists them.
          redo: whether to replace folders that are out of date.
          forced: the names of parts whose folders are replaced even if they are up to date.
        """
        for number, part in enumerate(parts, start=1):
            print(f'[{number} of {len(parts)}] {part.name}', flush=True)
            self.reached = dict(part=part.name, number=number, of=len(parts))
            is_card = part.name == card.STAGE.name
            if is_card:  # the card begins with what the report says
                self.write_report(self.reached)
            replace = part.name in forced or (is_card and self.at_work)  # a loop at work writes to the card, too
            replace = replace or ((redo or is_card) and part.state() is State.OUT_OF_DATE)
            if self.at_work or (is_card and replace):
                self.begin()
            try:
                with timed(self.workdir, part.name):
                    part.make(replace)
            except (UserError, Stopped) as error:
                self.write_report(self.reached, one_line(error) or 'asked to stop')
                card.write_opening(self.workdir)
                if not is_card:
                    with suppress(UserError):  # there may be nothing to describe yet
                        parts[-1].make(True)
                raise

    def begin(self) -> None:
        """Record in the report and the card which part the loop is working on."""
        if self._noted != self.reached:
            self.write_report(self.reached)
            card.write_opening(self.workdir)
        self.at_work, self._noted = True, self.reached

    def write_report(self, reached: dict[str, Any] | None, why: str = '') -> dict[str, Any]:
        """Write report.json, and return its content.

        Args:
          reached: the part that the loop has reached; None once the loop has finished.
          why: why the loop has stopped at that part; '' if it has not stopped.
        """
        policy, ends = method_of(self.config).trains[-1], why or not reached
        pairs_of_policy = pairs_file(self.workdir / policy)  # read in full, so only if the loop ends or stops
        report = self.report | dict(
            summary=summary(self.report),
            models=models(self.config),
            pairs_to_read=pairs_to_read(pairs_of_policy) if ends and pairs_of_policy else [],
            notes=notes(self.config, self.workdir, self.report),
        )
        if reached:
            report['unfinished'] = reached | dict(why=why, next='run the same command again to continue')
        write_json(self.workdir / 'report.json', report, private=True)
        return report


def run_loop(config: ConfigDict, workdir: Path, *, redo: str | None = None, ask: bool = True) -> dict[str, Any]:
    """Start or resume the loop, run it to its end, and return the report.

    Args:
      config: the loop's config.
      workdir: the round's folder.
      redo: None to stop at the first folder that is out of date; '' to remake all such folders; a stage's name to
        also rerun that stage, even if it is up to date.
      ask: whether to ask for confirmation before remaking a folder.

    Raises:
      UserError: settings in the config contradict each other, or a stage cannot continue.
      Stopped: training was asked to stop; the same command resumes.
    """
    check_settings(config)
    if not users_talk(config) and not (workdir / 'loop.json').exists():
        _check_data(config, workdir)
    if redo is None:
        claim(config, workdir, model_identity(config, config.model.path))
    this_round = Round(config, workdir)
    parts = this_round.parts()
    forced = chosen(parts, redo) if redo else frozenset()
    if redo is not None:
        confirm([part for part in to_redo(parts, forced) if part.name != card.STAGE.name], ask)
        claim(config, workdir, model_identity(config, config.model.path), replace=True)
    print(f'The loop has {len(parts)} parts, from {parts[0].name} to {parts[-1].name}, in {workdir}.', flush=True)
    this_round.run(parts, redo=redo is not None, forced=forced)
    return this_round.write_report(None)


def _check_data(config: ConfigDict, workdir: Path) -> None:
    """Check the machine and a sample of the data, and print every problem found.

    Raises:
      UserError: at least one of the problems would stop the loop.
    """
    findings = Findings()
    rules = ingest.rules_of(with_paths(config, workdir))
    sample = check_data(config, ingest.raw_files(config), rules, findings)
    check_machine(config, workdir, sample, findings)
    findings.raise_if_any_stops()


def main() -> None:
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    config = load_config(flags.FLAGS.config)
    workdir = workdir_path(flags.FLAGS.workdir)
    run_shared(lambda: _run_and_print(config, workdir), config)


def _run_and_print(config: ConfigDict, workdir: Path) -> None:
    try:
        report = run_loop(config, workdir, redo=flags.FLAGS.redo, ask=not flags.FLAGS.yes)
    except Stopped:
        sys.exit(STOPPED)
    print_report(report)
    print(times_in_words(workdir))


if __name__ == '__main__':
    run(main)
