"""One round of RLHI: conversations in; reward model, policy, evaluation and Hugging Face folders out.

    python -m rlhi_jax.loop --config=configs/NAME.py[:variant] --workdir=DIR

Runs the stages of `data_pipelines` and the programs beside it in order, each into a folder of its own in the workdir.
What is finished is kept and what was interrupted goes on where it stopped, so the same command resumes at any point. It
ends in WORKDIR/report.json, which `print_report` shows. `config.loop.method` says where preference pairs come from:

    rewrites   replies rewritten under users' feedback
    rewards    best and worst of N sampled replies by a reward model that was trained on the rewrites
    both       the two together
    oracle     best and worst of N by the checkers of simulated users: an upper bound, no reward model
"""

import functools
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
from data_pipelines.core.stage import load_records
from data_pipelines.preferences.reading import pairs_to_read
from data_pipelines.simulator.summary import summarise
from data_pipelines.simulator.users import held_out_pairs
from data_pipelines.sources import simulated
from data_pipelines.teacher.generation import model_identity
from rlhi_jax.cli.program import define_flags, load_config, run, workdir_path
from rlhi_jax.config import base_config, is_endpoint, require
from rlhi_jax.convert import export_model
from rlhi_jax.data.shards import Shards
from rlhi_jax.evaluate import evaluate, evaluation_name
from rlhi_jax.evaluation.tables import print_report
from rlhi_jax.io.errors import NothingToEvaluate, UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import saved_steps
from rlhi_jax.sampling.generator import release
from rlhi_jax.train import STOPPED, train
from rlhi_jax.training.workdir import refuse_difference

TIMES = 'times.jsonl'
METHODS = {  # where pairs come from, and whether a reward model is trained
    'rewrites': ('rewrites', False),
    'rewards': ('candidates', True),
    'both': ('rewrites,candidates', True),
    'oracle': ('candidates', False),
}
UNCLAIMED = (  # settings that may change when a loop goes on
    *('mesh', 'log', 'compilation_cache', 'beam'),
    # How an endpoint is asked, not what. (Where it is may change too; the path of a folder may not.)
    *('teacher.key_variable', 'teacher.concurrency', 'teacher.timeout', 'teacher.retries'),
    *('teacher.budget', 'teacher.price_in', 'teacher.price_out', 'teacher.cache'),
    *('pairs.accept_artefacts', 'pairs.min_pairs'),  # what to do when these stop the run
    'ingest.opt_out',  # what is on it, its stage knows
)


OVERRULED = {  # settings of single programs, and what the loop goes by instead
    'objective': 'config.loop.method',
    'train.epochs': 'config.loop.reward.epochs and config.loop.dpo.epochs',
    'optimizer.learning_rate': 'config.loop.reward.learning_rate and config.loop.dpo.learning_rate',
    'pairs.sources': 'config.loop.method',
    'eval.shards': 'pairs that it holds out itself',
    **{f'data.{name}': 'folders in its workdir' for name in ('conversations', 'follow_ups', 'personas', 'rewrites')},
}


class Stopped(Exception):
    """Training was asked to stop and has saved."""


def with_paths(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config with every stage's folder in the workdir, but for the raw data if it is given."""
    config = config.copy_and_resolve_references()
    for name in ('conversations', 'follow_ups', 'personas', 'rewrites', 'candidates', 'card'):
        config.data[name] = str(workdir / name)
    for name in ('pairs', 'shards', 'rows'):  # each training has its own
        config.data[name] = ','.join(str(workdir / objective / name) for objective in ('reward', 'dpo'))
    if config.loop.simulated:
        config.data.raw = str(workdir / 'raw')
    if config.loop.method == 'oracle':
        config.data.scores = str(workdir / 'scores')
        config.data.prompts = str(workdir / 'raw' / 'prompts.jsonl')
    if config.loop.oracle_personas:
        config.data.personas = ''
    return config


def training_config(config: ConfigDict, workdir: Path, objective: str) -> ConfigDict:
    """The config of the reward model's or the policy's run, with data of its own."""
    config = config.copy_and_resolve_references()
    config.objective = objective
    config.model.new_head = objective == 'reward'
    own = config.loop[objective]
    config.train.epochs, config.optimizer.learning_rate = own.epochs, own.learning_rate
    config.pairs.sources = 'rewrites' if objective == 'reward' else METHODS[config.loop.method][0]
    for name in ('pairs', 'shards', 'rows'):
        config.data[name] = str(workdir / objective / name)
    config.eval.shards = str(workdir / objective / 'heldout')
    return config


def run_loop(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Run the loop, or what is left of it; returns the report.

    Raises:
      UserError: the config asks for what cannot be done, or a stage cannot go on.
      Stopped: training was asked to stop; the same command goes on from there.
    """
    require(config, 'model.path')
    if config.loop.method == 'oracle' and not config.loop.simulated:
        raise UserError("config.loop.method='oracle' needs simulated users: set config.loop.simulated=True")
    if config.loop.oracle_personas and config.loop.method != 'oracle':
        raise UserError(
            f'config.loop.oracle_personas does without conversations, but config.loop.method={config.loop.method!r} '
            "needs them: unset one, or set the method to 'oracle'"
        )
    if config.loop.simulated and min(config.simulated.users.train, config.simulated.users.test) < 1:
        raise UserError('config.simulated.users: train and test must have users, to learn from and to evaluate on')
    default = base_config()
    for name, instead in OVERRULED.items():
        if attrgetter(name)(config) != attrgetter(name)(default):
            print(f'config.{name} is not read: the loop goes by {instead}', file=sys.stderr, flush=True)
    given, config = config, with_paths(config, workdir)
    _claim(given, workdir)
    report: dict[str, Any] = dict(method=config.loop.method, funnel={})
    not_evaluated: list[str] = []

    def stage(stage, config: ConfigDict, name: str = '') -> None:
        with _timed(workdir, name or stage.name):
            report['funnel'][name or stage.name] = stage.run(config)

    if config.loop.simulated:
        stage(simulated.STAGE, config)
    if not config.loop.oracle_personas:
        for each in (ingest, follow_ups, personas):
            stage(each.STAGE, config)
    if config.loop.method != 'oracle':
        stage(rewrites.STAGE, config)
    if METHODS[config.loop.method][1]:
        reward = training_config(config, workdir, 'reward')
        report['reward'] = _train_and_evaluate(reward, workdir, stage)
        config.candidates.reward_model = str(workdir / 'reward' / 'run')
    if 'candidates' in METHODS[config.loop.method][0]:
        stage(candidates.STAGE, config)
    if config.loop.method == 'oracle':
        stage(oracle_scores.STAGE, config)
    policy = training_config(config, workdir, 'dpo')
    report['dpo'] = _train_and_evaluate(policy, workdir, stage)
    if config.loop.simulated:
        try:
            report['satisfaction'] = _satisfaction(config, workdir, stage)
        except NothingToEvaluate as error:
            not_evaluated = [f'Satisfaction was not evaluated: {error}'.replace(f'{workdir}/', '')]
    for objective in ('reward', 'dpo'):
        if objective in report:
            with _timed(workdir, f'{objective}: export'):
                _export(workdir / objective / 'run', workdir / objective / 'huggingface')
    stage(card.STAGE, config)
    report['pairs_to_read'] = pairs_to_read(workdir / 'dpo' / 'pairs' / 'train.jsonl')
    report['notes'] = notes(config, workdir, report['funnel']) + not_evaluated
    write_json(workdir / 'report.json', report, private=True)
    return report


@contextmanager
def _timed(workdir: Path, part: str) -> Iterator[None]:
    """Note how long a part of the loop took; one that is killed leaves no note."""
    start = time.monotonic()
    try:
        yield
    finally:
        with open(workdir / TIMES, 'a', encoding='utf-8') as file:
            file.write(json.dumps(dict(part=part, seconds=round(time.monotonic() - start, 1))) + '\n')


def time_spent(workdir: Path) -> dict[str, float]:
    """Seconds by part of the loop, over all restarts."""
    spent: Counter = Counter()
    for record in load_records(workdir / TIMES):
        spent[record['part']] += record['seconds']
    return dict(spent)


def _claim(config: ConfigDict, workdir: Path) -> None:
    """Refuse a workdir of another config: its stages would contradict each other half-way."""
    settings = config.to_dict()
    for name in UNCLAIMED + (('teacher.path',) if is_endpoint(config.teacher.path) else ()):
        *sections, key = name.split('.')
        del functools.reduce(dict.__getitem__, sections, settings)[key]
    own = dict(config=settings, model=model_identity(config, config.model.path))
    path = workdir / 'loop.json'
    if path.exists():
        stored = read_json(path, f'remove {workdir} or name another --workdir', fields=('config', 'model'))
        refuse_difference(f'--workdir={workdir} holds a loop', stored, own)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, own)


def _train_and_evaluate(config: ConfigDict, workdir: Path, stage: Callable) -> dict[str, Any]:
    """Pairs → shards → rows → training → held-out accuracy; returns the artefact probe and the evaluation."""
    objective, run = config.objective, workdir / config.objective / 'run'
    stage(pairs.STAGE, config, f'{objective}: pairs')
    stage(shards.STAGE, config, f'{objective}: shards')
    heldout = config.copy_and_resolve_references()
    heldout.data.split, heldout.data.shards = 'heldout', config.eval.shards
    has_heldout = bool((Path(config.data.pairs) / 'heldout.jsonl').stat().st_size)
    if has_heldout:
        stage(shards.STAGE, heldout, f'{objective}: heldout')
    stage(rows.STAGE, config, f'{objective}: rows')
    _release()
    with _timed(workdir, f'{objective}: training'):
        if not train(config, run):
            raise Stopped
    found = dict(probe=read_json(Path(config.data.pairs) / 'manifest.json', 'run again')['probe'], evaluation=None)
    if has_heldout:
        with _timed(workdir, f'{objective}: evaluation'):
            found['evaluation'] = _evaluated(config, run, saved_steps(run)[-1])
            if objective == 'reward':  # a policy's implicit reward is 0 everywhere before training
                found['before'] = _evaluated(config, run, 0)
    gc.collect()
    return found


def _evaluated(config: ConfigDict, run: Path, step: int) -> dict[str, Any] | str:
    done = run / 'evaluation' / evaluation_name(step, shards := Shards(Path(config.eval.shards)).digest)
    asked = dict(data=shards, max_trees=config.eval.max_trees, shuffle_seed=config.eval.shuffle_seed)
    if done.exists() and asked.items() <= (found := read_json(done, f'remove {done}', fields=())).items():
        return found
    try:
        return evaluate(config, run, step)
    except NothingToEvaluate as error:  # no reason to lose the run
        return f'not evaluated: {error}'.replace(f'{run.parent.parent}/', '')  # a report may be passed on


def _satisfaction(config: ConfigDict, workdir: Path, stage: Callable) -> dict[str, Any]:
    folders = {name: workdir / 'satisfaction' / name for name in ('before', 'after')}
    for name, model in (('before', ''), ('after', str(workdir / 'dpo' / 'run'))):
        own = config.copy_and_resolve_references()
        own.data.satisfaction, own.satisfaction.model = str(folders[name]), model
        stage(satisfaction.STAGE, own, f'satisfaction {name}')
        _release()
    return summarise(folders, held_out_pairs(config))


def _export(run: Path, to: Path) -> None:
    if not to.exists():
        export_model(run, to, step=None, dtype='float32')
        print(f'wrote {to}', flush=True)


def _release() -> None:
    """Give back the memory of the sampler that stages share."""
    release()
    gc.collect()


def notes(config: ConfigDict, workdir: Path, funnel: dict[str, dict[str, int]]) -> list[str]:
    """What a reader of the report must know."""
    said = []
    if config.loop.smoke:
        said.append('Smoke, not evidence: few users, few steps.')
    if found := funnel.get('personas'):
        share = found['turns_with_persona'] / max(found['turns'], 1)
        said.append(
            f'{share:.0%} of the turns that may be mined have a persona; the others are of users not known yet.'
        )
    if not config.teacher.path and config.loop.method != 'oracle':
        said.append(
            f'The teacher is the policy itself ({Path(config.model.path).name}): unless that is a strong model, this '
            'run proves the plumbing only. Name a stronger one with config.teacher.path.'
        )
    said.append(f'Data card: {workdir}/card/card.md')
    said.append(f'Models: {workdir}/{{reward,dpo}}/huggingface')
    return said


def main() -> None:
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    config = load_config(flags.FLAGS.config)
    workdir = workdir_path(flags.FLAGS.workdir)
    try:
        report = run_loop(config, workdir)
    except Stopped:
        sys.exit(STOPPED)
    print_report(report)
    spent = time_spent(workdir)
    longest = ', '.join(f'{part} {spent[part] / 60:.1f}' for part in sorted(spent, key=spent.get, reverse=True)[:4])
    print(f'Minutes, over all restarts: {sum(spent.values()) / 60:.1f}, of which {longest}')


if __name__ == '__main__':
    define_flags()
    run(main)
