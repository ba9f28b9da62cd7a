"""Runs one round of RLHI, from conversations to a reward model, a policy, evaluations and Hugging Face folders.

    python -m rlhi_jax.loop --config=configs/NAME.py[:variant] --workdir=DIR

The loop runs stages from `data_pipelines` and programs from `rlhi_jax`, one after another. Each of them writes to its
own folder in the workdir. Finished work is kept and interrupted work resumes, so the same command continues from any
point. At the end, the loop writes WORKDIR/report.json and prints it. `config.loop.method` selects the source of the
preference pairs:

    rewrites   replies rewritten in response to users' feedback
    rewards    the best and worst of N sampled replies, scored by a reward model trained on the rewrites
    both       rewrites and rewards together
    oracle     the best and worst of N sampled replies, scored by the simulated users' checkers: an upper bound that
               needs no reward model
"""

from rlhi_jax.cli.program import define_flags, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    start()

import functools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from data_pipelines import (
    candidates,
    card,
    follow_ups,
    ingest,
    oracle_scores,
    pairs,
    personas,
    rewrites,
    rows,
    satisfaction,
    shards,
)
from data_pipelines.core.record_files import load_records
from data_pipelines.core.stage import Stage
from data_pipelines.preferences.reading import pairs_to_read
from data_pipelines.simulator.summary import summarise
from data_pipelines.simulator.users import held_out_tastes
from data_pipelines.sources import simulated
from data_pipelines.teacher.generation import model_identity
from rlhi_jax.config import base_config, is_endpoint, require
from rlhi_jax.config.loop_paths import METHODS, training_config, with_paths
from rlhi_jax.convert import export_model
from rlhi_jax.evaluate import evaluate, stored_evaluation
from rlhi_jax.evaluation.tables import print_report
from rlhi_jax.io.errors import NothingToEvaluate, UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import open_model, saved_steps
from rlhi_jax.train import STOPPED, train
from rlhi_jax.training.model import check_pad_token
from rlhi_jax.training.workdir import refuse_difference

TIMES = 'times.jsonl'
CHANGEABLE = (  # settings that may change when a loop resumes
    *('mesh', 'log', 'compilation_cache', 'beam'),
    # How requests are sent, not what they ask. (An endpoint's address may change too; a model folder's path must not.)
    *('teacher.key_variable', 'teacher.concurrency', 'teacher.timeout', 'teacher.retries'),
    *('teacher.budget', 'teacher.price_in', 'teacher.price_out', 'teacher.cache'),
    *('pairs.accept_artefacts', 'pairs.min_pairs'),  # may change after a check on the pairs stopped the run
    'ingest.opt_out',  # the ingest stage itself checks whether the list has changed
)
IGNORED = {  # settings that only single programs use, and what the loop uses instead
    'objective': 'config.loop.method',
    'train.epochs': 'config.loop.reward.epochs and config.loop.dpo.epochs',
    'optimizer.learning_rate': 'config.loop.reward.learning_rate and config.loop.dpo.learning_rate',
    'pairs.sources': 'config.loop.method',
    'eval.shards': 'the pairs that it holds out itself',
    **{f'data.{name}': 'folders in its workdir' for name in ('conversations', 'follow_ups', 'personas', 'rewrites')},
}


class Stopped(Exception):
    """Raised when training was asked to stop and has saved its state."""


class Round:
    """One round of the loop, in a workdir.

    Attributes:
      config: the loop's config, in which the stages' folders are set.
      workdir: the round's folder.
      report: the results so far, in the format of report.json.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = with_paths(config, workdir), workdir
        self.report: dict[str, Any] = dict(method=config.loop.method, funnel={})

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Time a part of the round, and append its duration to times.jsonl when it ends or fails.

        If the process is killed, nothing is appended.
        """
        start = time.monotonic()
        try:
            yield
        finally:
            with open(self.workdir / TIMES, 'a', encoding='utf-8') as file:
                file.write(json.dumps(dict(part=part, seconds=round(time.monotonic() - start, 1))) + '\n')

    def make(self, stage: Stage, config: ConfigDict, name: str = '') -> None:
        """Run a stage unless its folder is up to date, and add its counts to the report.

        The report lists the counts under `name` or, if `name` is empty, under the stage's name.
        """
        name = name or stage.name
        with self.timed(name):
            self.report['funnel'][name] = stage.run(config)

    def mine(self) -> None:
        """Turn conversations into follow-up labels, personas and rewrites."""
        if self.config.loop.simulated:
            self.make(simulated.STAGE, self.config)
        if not self.config.loop.oracle_personas:
            for module in (ingest, follow_ups, personas):
                self.make(module.STAGE, self.config)
        if self.config.loop.method != 'oracle':
            self.make(rewrites.STAGE, self.config)

    def sample_candidates(self) -> None:
        """Sample replies and score them with the reward model or (method oracle) with the simulated users' checkers."""
        self.make(candidates.STAGE, self.config)
        if self.config.loop.method == 'oracle':
            self.make(oracle_scores.STAGE, self.config)

    def train(self, objective: str) -> None:
        """Make pairs, shards and rows, train on them, and evaluate the trained model on held-out pairs."""
        config, folder = training_config(self.config, self.workdir, objective), self.workdir / objective / 'run'
        self.make(pairs.STAGE, config, f'{objective}: pairs')
        self.make(shards.STAGE, config, f'{objective}: shards')
        validation = config.copy_and_resolve_references()
        validation.data.split, validation.data.shards = 'validation', config.eval.shards
        has_validation = (Path(config.data.pairs) / 'validation.jsonl').stat().st_size > 0
        if has_validation:
            self.make(shards.STAGE, validation, f'{objective}: validation')
        self.make(rows.STAGE, config, f'{objective}: rows')
        with self.timed(f'{objective}: training'):
            if not train(config, folder):
                raise Stopped
        probe = read_json(Path(config.data.pairs) / 'manifest.json', 'run the same command again')['probe']
        section = self.report[objective] = dict(probe=probe, evaluation=None, not_evaluated='no pairs were held out')
        if has_validation:
            with self.timed(f'{objective}: evaluation'):
                # A policy is not evaluated before training, because its implicit reward is then 0 everywhere.
                steps = dict(evaluation=saved_steps(folder)[-1]) | (dict(before=0) if objective == 'reward' else {})
                section |= _evaluations(config, folder, steps)

    def judge_satisfaction(self) -> None:
        """Measure how satisfied simulated users are with the policy before and after training."""
        policy = self.workdir / METHODS[self.config.loop.method].trains[-1] / 'run'
        folders = {name: self.workdir / 'satisfaction' / name for name in ('before', 'after')}
        try:
            for name, model in (('before', ''), ('after', str(policy))):
                config = self.config.copy_and_resolve_references()
                config.data.satisfaction, config.satisfaction.model = str(folders[name]), model
                self.make(satisfaction.STAGE, config, f'satisfaction {name}')
            self.report['satisfaction'] = summarise(folders, held_out_tastes(self.config))
        except NothingToEvaluate as error:
            self.report['satisfaction_not_evaluated'] = str(error)

    def export(self, objective: str) -> None:
        """Write the trained model as a Hugging Face folder, unless that folder exists."""
        folder = self.workdir / objective / 'huggingface'
        with self.timed(f'{objective}: export'):
            if not folder.exists():
                export_model(self.workdir / objective / 'run', folder, step=None, dtype='float32')
                print(f'wrote {folder}', flush=True)


def run_loop(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Start or resume the loop, run it to its end, and return the report.

    Raises:
      UserError: settings in the config contradict each other, or a stage cannot continue.
      Stopped: training was asked to stop; the same command resumes.
    """
    _check(config)
    _claim(config, workdir)
    this_round, method = Round(config, workdir), METHODS[config.loop.method]
    this_round.mine()
    for objective in method.trains:
        if objective == method.trains[-1] and 'candidates' in method.sources:
            this_round.sample_candidates()
        this_round.train(objective)
        if objective == 'reward':
            this_round.config.candidates.reward_model = str(workdir / 'reward' / 'run')
    if config.loop.simulated:
        this_round.judge_satisfaction()
    for objective in method.trains:
        this_round.export(objective)
    this_round.make(card.STAGE, this_round.config)
    report = this_round.report
    report['pairs_to_read'] = pairs_to_read(workdir / method.trains[-1] / 'pairs' / 'train.jsonl')
    report['notes'] = notes(this_round.config, workdir, report)
    write_json(workdir / 'report.json', report, private=True)
    return report


def _check(config: ConfigDict) -> None:
    """Reject a config whose settings contradict each other, and print which settings the loop ignores."""
    require(config, 'model.path')
    if 'reward' in METHODS[config.loop.method].trains:
        check_pad_token(open_model(config.model.path))
    if config.loop.method == 'oracle' and not config.loop.simulated:
        raise UserError("config.loop.method='oracle' needs simulated users: set config.loop.simulated=True")
    if config.loop.oracle_personas and config.loop.method != 'oracle':
        raise UserError(
            f'config.loop.oracle_personas=True skips the conversations that config.loop.method={config.loop.method!r} '
            "needs: set oracle_personas to False, or set config.loop.method='oracle'"
        )
    if config.loop.simulated and min(config.simulated.users.train, config.simulated.users.test) < 1:
        raise UserError(
            'the loop needs simulated users to train on and to evaluate on: set config.simulated.users.train and '
            'config.simulated.users.test to at least 1'
        )
    default = base_config()
    for name, instead in IGNORED.items():
        if attrgetter(name)(config) != attrgetter(name)(default):
            print(f'config.{name} is ignored here; the loop uses {instead}', file=sys.stderr, flush=True)


def _claim(config: ConfigDict, workdir: Path) -> None:
    """Check that the workdir is new, or contains a loop with the same config and initial model.

    In a new workdir, both are recorded. The settings in `CHANGEABLE` and the address of an endpoint may differ.
    """
    settings = config.to_dict()
    for name in CHANGEABLE + (('teacher.path',) if is_endpoint(config.teacher.path) else ()):
        *sections, key = name.split('.')
        del functools.reduce(dict.__getitem__, sections, settings)[key]
    claimed = dict(config=settings, model=model_identity(config, config.model.path))
    path = workdir / 'loop.json'
    if path.exists():
        stored = read_json(path, f'remove {workdir} or use another --workdir', fields=('config', 'model'))
        refuse_difference(f'--workdir={workdir} contains a loop', stored, claimed)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, claimed)


def _evaluations(config: ConfigDict, folder: Path, steps: dict[str, int]) -> dict[str, Any]:
    """Return the evaluation of each step under the step's key in `steps`, and '' under 'not_evaluated'.

    If the evaluation is not possible, return only the reason, under 'not_evaluated'.
    """
    try:
        evaluations = {
            name: stored_evaluation(config, folder, step) or evaluate(config, folder, step)
            for name, step in steps.items()
        }
    except NothingToEvaluate as error:  # the trained model is unaffected
        return dict(not_evaluated=str(error))
    return evaluations | dict(not_evaluated='')


def notes(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> list[str]:
    """Return caveats for the reader of the report, and the locations of the results."""
    lines = []
    if config.loop.smoke:
        lines.append('This is a smoke test with few users and few steps: its figures are not evidence.')
    if counts := report['funnel'].get('personas'):
        share = counts['turns_with_persona'] / max(counts['turns'], 1)
        lines.append(
            f'{share:.0%} of the turns that can be mined have a persona; nothing is known yet about the other users.'
        )
    if not config.teacher.path and config.loop.method != 'oracle':
        lines.append(
            f'The teacher is the policy itself ({Path(config.model.path).name}): unless that is a strong model, this '
            'run tests the plumbing only. Set config.teacher.path to a stronger model.'
        )
    lines.append(f'Data card: {workdir}/card/card.md')
    lines.append(f'Models: {workdir}/{{reward,dpo}}/huggingface')
    if reason := report.get('satisfaction_not_evaluated'):
        lines.append(f'Satisfaction was not evaluated: {reason}')
    return lines


def time_spent(workdir: Path) -> dict[str, float]:
    """Return the seconds that each part of the loop took, summed over all restarts."""
    seconds: Counter = Counter()
    for record in load_records(workdir / TIMES):
        seconds[record['part']] += record['seconds']
    return dict(seconds)


def main() -> None:
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    config = load_config(flags.FLAGS.config)
    workdir = workdir_path(flags.FLAGS.workdir)
    try:
        report = run_loop(config, workdir)
    except Stopped:
        sys.exit(STOPPED)
    print_report(report)
    seconds = time_spent(workdir)
    longest = sorted(seconds, key=seconds.get, reverse=True)[:4]
    parts = ', '.join(f'{part} {seconds[part] / 60:.1f}' for part in longest)
    print(f'Minutes, over all restarts: {sum(seconds.values()) / 60:.1f}, of which {parts}')


if __name__ == '__main__':
    run(main)
