"""Evaluate a trained model on held-out pairs, given the user's own persona, another user's persona, or none.

    python -m rlhi_jax.evaluate --config=configs/NAME.py[:variant] --workdir=DIR [--step=N]
    python -m rlhi_jax.evaluate reward --config=configs/NAME.py --model=DIR --pairs=FILES [--split=NAME] [--to=FILE]

The first command evaluates a training run. Pass the run's config and workdir; `config.eval` contains the evaluation
settings. A model that ignores the persona scores the same under all three conditions, so differences between the
conditions measure what the persona contributes. Each metric comes with a 95 % confidence interval from a bootstrap over
users.

The second command evaluates any reward model on any preferences, such as a file of the stage `pairs` or of RewardBench.
It adds the condition `neutral`, a persona that says nothing; calibration; accuracies for kinds of pairs; and the
accuracies of two baselines. Under `other`, a pair gets the persona of a user who prefers the other
reply, if the file has one. A policy can be evaluated, too: its reward for a reply is how many nats likelier the persona
makes the reply.
"""

from absl import flags

from rlhi_jax.cli.program import define_flags, load_config, require_flags, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    flags.DEFINE_integer('step', None, 'Step to evaluate; 0: the model before training. Default: the latest step.')
    flags.DEFINE_string('model', None, 'reward: model folder or workdir of the model to evaluate.')
    flags.DEFINE_string('pairs', None, 'reward: preferences, as files, folders or hf://OWNER/NAME, between commas.')
    flags.DEFINE_string('split', 'validation', 'reward: the split to read from folders and hub data sets.')
    flags.DEFINE_string('to', None, 'reward: JSON file to write the result to.')
    COMMAND = start(commands=('reward',), required=False)

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.preferences.files import Origin, named_preferences
from rlhi_jax.config import require
from rlhi_jax.config.loop_paths import training_config, with_paths
from rlhi_jax.data.loader import RowReader
from rlhi_jax.data.plan import check_positions, make_plan, nothing_fits
from rlhi_jax.data.rows import capacities, stack
from rlhi_jax.data.shards import Shards
from rlhi_jax.evaluation.conditions import conditioned, user_of, views
from rlhi_jax.evaluation.reward import evaluation
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.evaluation.tables import print_reward_table, print_table
from rlhi_jax.io.errors import NothingToEvaluate, UserError
from rlhi_jax.io.files import file_digest, read_json, write_json
from rlhi_jax.models.checkpoints import ModelFolder, open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import check_fit
from rlhi_jax.models.resident import RESIDENT
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel import processes
from rlhi_jax.parallel.crew import call_together, shared
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.scoring.gaps import pair_gaps
from rlhi_jax.scoring.logprobs import per_reply
from rlhi_jax.scoring.pairs import ReplyScores, log_probabilities, pair_scores
from rlhi_jax.scoring.rows import score_readers
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.model import make_decoder, sees_persona
from rlhi_jax.training.rows import check_pairs
from rlhi_jax.training.workdir import refuse_another_run, run_identity

Values = dict[str, dict[str, float]]  # pair id -> metric -> value


def pair_values(
    config: ConfigDict, decoder: Decoder, reader: RowReader, scores: np.ndarray, reference: np.ndarray | None
) -> Values:
    """Return the loss and metrics of every pair in a plan, keyed by pair id.

    Args:
      config: the config, which names the objective and contains its settings.
      decoder: the decoder that computed the scores: rewards if it has a reward head, log-probabilities otherwise.
      reader: reads the rows of the plan.
      scores: rewards of the R replies in each row, [rows, R], or log-probabilities of the S scored tokens in each row,
        [rows, S].
      reference: log-probabilities of the scored tokens under the reference model, [rows, S]; None if the objective
        uses no reference.
    """
    values: Values = {}
    for number, row_scores in enumerate(scores):
        batch = stack([reader[number]])
        if reference is not None:
            batch = batch._replace(reference_logp_BR=per_reply(reference[number][None], batch))
        is_reward = decoder.spec.head == 'reward'
        replies = ReplyScores(reward_BR=row_scores[None]) if is_reward else log_probabilities(row_scores[None], batch)
        loss, metrics = OBJECTIVES[config.objective].loss(pair_scores(replies, batch), config.get(config.objective))
        columns = {name: np.asarray(column)[0] for name, column in {'loss': loss, **metrics}.items()}
        for slot, pair in enumerate(batch.pair_id_BP[0]):
            if pair >= 0:
                name = reader.plan.pair_names[pair]
                values[name] = {metric: float(column[slot]) for metric, column in columns.items()}
    return values


def summarise(by_condition: dict[str, Values], users: dict[str, str]) -> dict[str, Any]:
    """Return the metrics for each persona condition, and how much more accurate 'own' is than each other one.

    Only pairs that have values under all conditions are used.

    Args:
      by_condition: the values of all pairs under each persona condition.
      users: the user of each pair, keyed by pair id.
    """
    shared = set.intersection(*(set(values) for values in by_condition.values()))
    result: dict[str, Any] = dict(pairs=len(shared), users=len({users[pair] for pair in shared}), conditions={})
    for name, values in by_condition.items():
        metrics = next(iter(values.values()))
        result['conditions'][name] = {
            metric: interval({pair: values[pair][metric] for pair in shared}, users) for metric in sorted(metrics)
        }
    own = by_condition.get('own', {})
    result['accuracy_difference'] = {
        f'own - {name}': interval({p: own[p]['accuracy'] - values[p]['accuracy'] for p in shared}, users)
        for name, values in by_condition.items()
        if own and name != 'own'
    }
    return result


class HeldOut(NamedTuple):
    """The held-out pairs of an evaluation.

    Attributes:
      shards: the shards that contain the pairs.
      readers: for each persona condition, a reader of the rows that the evaluated model scores.
      users: the user of each pair, keyed by pair id.
    """

    shards: Shards
    readers: dict[str, RowReader]
    users: dict[str, str]


def evaluate(config: ConfigDict, workdir: Path, step: int | None) -> dict[str, Any]:
    """Score the held-out pairs under each persona condition, write the result to WORKDIR/evaluation and return it.

    If `step` is None, the latest step is evaluated. Step 0 is the model that training starts from, including the
    randomly initialised reward head if training adds one.

    Raises:
      UserError: the workdir or the held-out shards are missing, damaged or empty; or `config` differs from the settings
        that the run was trained with.
    """
    initial = open_model(config.model.path)
    model = initial if step == 0 else open_model(workdir, step)
    refuse_another_run(workdir, run_identity(config, initial))
    mesh = make_mesh(config.mesh.to_dict())
    config = config.copy_and_resolve_references()
    config.model.new_head &= step == 0  # at later steps, the model already has its head
    decoder = make_decoder(config, model)
    check_fit(mesh, decoder.spec, config.eval.batch_rows, 'config.eval.batch_rows')
    held_out = open_held_out(config, model)
    readers = held_out.readers
    RESIDENT.release()  # a stage in this process may have left a model in memory
    with on_mesh(mesh):
        scores = score_readers(config, decoder, model, readers, mesh, 'evaluate', output='token')
        references: dict[str, np.ndarray | None] = dict.fromkeys(readers)
        if OBJECTIVES[config.objective].uses_reference:
            ref_readers = {n: dataclasses.replace(r, sees_persona=config.ref_sees_persona) for n, r in readers.items()}
            references = score_readers(config, decoder, initial, ref_readers, mesh, 'reference', output='token')
    by_condition = {
        name: pair_values(config, decoder, reader, scores[name], references[name]) for name, reader in readers.items()
    }
    result = summarise(by_condition, held_out.users) | dict(
        objective=config.objective,
        step=0 if step == 0 else model.step,
        data=held_out.shards.digest,
        counts={name: reader.plan.counts for name, reader in readers.items()},
        max_trees=config.eval.max_trees,
        shuffle_seed=config.eval.shuffle_seed,
        model=model.weights,
    )
    if processes.is_main():
        (workdir / 'evaluation').mkdir(exist_ok=True)
        write_json(workdir / 'evaluation' / evaluation_name(result['step'], held_out.shards.digest), result)
    return result


@shared
def join_evaluation(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """Run this process's share of an evaluation that the loop has started.

    `arguments` contains the loop's workdir, the objective and the step.
    """
    workdir, objective = Path(arguments['workdir']), arguments['objective']
    config = training_config(with_paths(config, workdir), workdir, objective)
    evaluate(config, workdir / objective / 'run', arguments['step'])


def evaluations(config: ConfigDict, folder: Path, steps: dict[str, int], begin: Callable[[], None]) -> dict[str, Any]:
    """Return the evaluations of a run of the loop at some steps; a step without a stored evaluation is evaluated now.

    The result has the keys of `steps`, and the key 'not_evaluated' with the value ''. If the held-out set cannot be
    used, the result has only the key 'not_evaluated', and its value is the reason. `begin` is called before each new
    evaluation.
    """
    found = {}
    try:
        for name, step in steps.items():
            if not (stored := stored_evaluation(config, folder, step)):
                begin()
                loop = str(folder.parents[1])
                call_together(join_evaluation, dict(workdir=loop, objective=config.objective, step=step))
            found[name] = stored or evaluate(config, folder, step)
    except NothingToEvaluate as error:  # the trained model is unaffected
        return dict(not_evaluated=str(error))
    return found | dict(not_evaluated='')


def open_held_out(config: ConfigDict, model: ModelFolder) -> HeldOut:
    """Open the held-out shards, and plan the rows of their pairs under each persona condition.

    Raises:
      UserError: the shards are missing, damaged or empty, or the objective cannot be evaluated on their pairs.
      NothingToEvaluate: no pair fits in a row.
    """
    shards = Shards(Path(config.eval.shards))
    check_pairs(shards, config)
    template = ChatTemplate.load(model.tokenizer_path)
    conditions = views(shards, max_trees=config.eval.max_trees, seed=config.eval.shuffle_seed)
    limits = capacities(config)
    plans = {name: make_plan(view, template, limits, may_be_empty=True) for name, view in conditions.items()}
    for name, view in conditions.items():
        check_positions(plans[name], view, template, most=model.spec.max_positions)
    if not set.intersection(*(set(plan.pair_names) for plan in plans.values())):
        raise NothingToEvaluate(nothing_fits('config.eval.shards', limits))
    readers = {name: RowReader(plans[name], view, template, sees_persona(config)) for name, view in conditions.items()}
    trees = map(shards.__getitem__, next(iter(conditions.values())).indices)
    return HeldOut(shards, readers, {pair.id: user_of(tree) for tree in trees for pair in tree.pairs})


def stored_evaluation(config: ConfigDict, workdir: Path, step: int) -> dict[str, Any] | None:
    """Return the stored evaluation of a step on the current held-out data and settings, or None if none is stored."""
    shards = Shards(Path(config.eval.shards)).digest
    path = workdir / 'evaluation' / evaluation_name(step, shards)
    if not path.exists():
        return None
    result = read_json(path, f'remove {path}', fields=())
    asked = dict(data=shards, max_trees=config.eval.max_trees, shuffle_seed=config.eval.shuffle_seed)
    return result if asked.items() <= result.items() else None


def evaluation_name(step: int, shards: str) -> str:
    """Return the file name of a step's evaluation, given the digest of the held-out shards."""
    return f'step-{step}-data-{shards[:8]}.json'


def evaluate_reward(config: ConfigDict, model_path: Path, pairs: str, split: str) -> dict[str, Any]:
    """Score preferences under each persona condition, and return the result of `rlhi_jax.evaluation.reward.evaluation`.

    Args:
      config: the config; `config.rm_sees_persona` says whether a reward model sees the personas.
      model_path: the model folder, or the workdir of a training run.
      pairs: files, folders and hub data sets of preferences, separated by commas.
      split: the split to read from folders and hub data sets.

    Raises:
      UserError: the model or the files are missing or damaged, or the files contain no usable preferences.
      NothingToEvaluate: no preference fits in a row.
    """
    model, counts = open_model(model_path), Counter()
    preferences, paths = named_preferences(pairs, split, counts, Origin('--pairs', '--split'))
    conditions = conditioned(preferences, seed=config.eval.shuffle_seed)
    is_reward = model.spec.head == 'reward'
    gaps = pair_gaps(config, model, conditions, sees_persona=config.rm_sees_persona or not is_reward)
    if not is_reward:
        gaps = {name: _rises(values, gaps['empty']) for name, values in gaps.items()}
    if not set.intersection(*map(set, gaps.values())):
        raise NothingToEvaluate(nothing_fits('--pairs', capacities(config)))
    return evaluation(gaps, preferences) | dict(
        counts=dict(counts),
        model=model.weights,
        head=model.spec.head,
        files=[[path.name, file_digest(path)] for path in paths],
        split=split,
        shuffle_seed=config.eval.shuffle_seed,
    )


def _rises(gaps: dict[str, float], without_persona: dict[str, float]) -> dict[str, float]:
    """Return by how much the persona raises each gap in log-probability, keyed by pair id."""
    return {pair: gap - without_persona[pair] for pair, gap in gaps.items() if pair in without_persona}


def main(command: str) -> None:
    config, given = load_config(flags.FLAGS.config), flags.FLAGS
    if command == 'reward':
        require_flags('model', 'pairs')
        _refuse_flags('workdir', 'step', command='the command reward')
        processes.start()
        result = evaluate_reward(config, Path(given.model), given.pairs, given.split)
        if processes.is_main():
            if given.to:
                write_json(Path(given.to), result)
            print_reward_table(result)
        return
    _refuse_flags('model', 'pairs', 'to', command='the evaluation of a run')
    require(config, 'model.path', 'eval.shards')
    workdir = workdir_path(given.workdir)
    processes.start()
    result = evaluate(config, workdir, given.step)
    if processes.is_main():
        print_table(result)


def _refuse_flags(*names: str, command: str) -> None:
    if given := [name for name in names if flags.FLAGS[name].value is not None]:
        raise UserError(f'--{given[0]} does not apply to {command}: remove it, or see --help')


if __name__ == '__main__':
    run(lambda: main(COMMAND))
