"""Evaluate a trained model on held-out pairs, with the user's own persona, none, and a stranger's.

    python -m rlhi_jax.evaluate --config=configs/NAME.py[:variant] --workdir=DIR [--step=N]

Takes the training run's config and workdir and `config.eval`. What the persona is worth is the difference between the
three: a model that ignores it scores the same. Intervals are 95 %, from a bootstrap over users.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.cli.program import define_flags, load_config, run, workdir_path
from rlhi_jax.config import require
from rlhi_jax.data.loader import RowReader, in_order
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import capacities
from rlhi_jax.data.shards import Shards
from rlhi_jax.evaluation.conditions import CONDITIONS, user_of, views
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.evaluation.tables import print_table
from rlhi_jax.io.errors import NothingToEvaluate
from rlhi_jax.io.files import write_json
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import ModelFolder, open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import check_fit, load_params
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel import processes
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.scoring.pairs import ReplyScores, pair_scores
from rlhi_jax.scoring.rows import RowScorer
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.model import make_decoder, sees_persona
from rlhi_jax.training.workdir import refuse_another_run, run_identity

Values = dict[str, dict[str, float]]  # pair id -> metric -> value


def pair_values(
    config: ConfigDict, decoder: Decoder, reader: RowReader, scores: np.ndarray, reference: np.ndarray | None
) -> Values:
    """Loss and metrics of every pair of a plan from its replies' scores, [rows, R]; by pair id."""
    values: Values = {}
    for row, row_scores in enumerate(scores):
        arrays = {name: array[None] for name, array in reader[row].items()}
        if reference is not None:
            arrays['reference_logp'] = reference[row][None]
        replies = np.asarray(row_scores)[None]
        if decoder.spec.head == 'reward':
            scored = ReplyScores(reward_BR=replies)
        else:
            lengths = np.bincount(arrays['slot_reply'][0], minlength=replies.shape[1] + 1)[: replies.shape[1]]
            scored = ReplyScores(logp_BR=replies, length_BR=lengths[None].astype(np.float32))
        loss, metrics = OBJECTIVES[config.objective].loss(pair_scores(scored, arrays), config.get(config.objective))
        columns = {name: np.asarray(column)[0] for name, column in {'loss': loss, **metrics}.items()}
        for place, pair in enumerate(arrays['pair_id'][0]):
            if pair >= 0:
                name = reader.plan.pair_names[pair]
                values[name] = {metric: float(column[place]) for metric, column in columns.items()}
    return values


def summarise(by_condition: dict[str, Values], users: dict[str, str]) -> dict[str, Any]:
    """Each condition's metrics and the paired differences in accuracy, over the pairs that all conditions have."""
    shared = set.intersection(*(set(values) for values in by_condition.values()))
    result: dict[str, Any] = dict(pairs=len(shared), users=len({users[pair] for pair in shared}), conditions={})
    for name, values in by_condition.items():
        metrics = next(iter(values.values()))
        result['conditions'][name] = {
            metric: interval({pair: values[pair][metric] for pair in shared}, users) for metric in sorted(metrics)
        }
    true = by_condition['true']
    result['accuracy_difference'] = {
        f'true - {name}': interval({p: true[p]['accuracy'] - by_condition[name][p]['accuracy'] for p in shared}, users)
        for name in CONDITIONS[1:]
    }
    return result


def evaluate(config: ConfigDict, workdir: Path, step: int | None) -> dict[str, Any]:
    """Score the held-out pairs under each condition; returns what it writes to WORKDIR/evaluation/step-N-data-D.json.

    Step 0 is the model that training starts from, a new reward head as it was drawn; None is the latest step.

    Raises:
      UserError: the workdir or the held-out shards are missing, damaged or empty, or the run had other settings.
    """
    objective = OBJECTIVES[config.objective]
    start = open_model(config.model.path)
    model = start if step == 0 else open_model(workdir, step)
    refuse_another_run(workdir, run_identity(config, start))
    mesh = make_mesh(config.mesh.to_dict())
    config = config.copy_and_resolve_references()
    config.model.new_head &= step == 0  # a later step has its head
    decoder = make_decoder(config, model)
    check_fit(mesh, decoder.spec, config.eval.batch_rows, 'config.eval.batch_rows')
    shards = Shards(Path(config.eval.shards))
    template = ChatTemplate.load(model.tokenizer_path)
    conditions = views(shards, max_trees=config.eval.max_trees, seed=config.eval.shuffle_seed)
    room = capacities(config)
    plans = {name: make_plan(view, template, room, may_be_empty=True) for name, view in conditions.items()}
    if not set.intersection(*(set(plan.pair_names) for plan in plans.values())):
        raise NothingToEvaluate(
            f'config.eval.shards: no pair of {shards.folder} fits a row of {room.tokens} tokens, {room.scored} of them '
            'scored: raise config.rows.tokens and config.rows.scored'
        )
    readers = {name: RowReader(plans[name], view, template, sees_persona(config)) for name, view in conditions.items()}
    with on_mesh(mesh):
        scores = _score(config, decoder, model, readers, mesh, 'evaluate')
        references: dict[str, np.ndarray | None] = dict.fromkeys(CONDITIONS)
        if objective.uses_reference:
            ref_readers = {n: dataclasses.replace(r, sees_persona=config.ref_sees_persona) for n, r in readers.items()}
            references = _score(config, decoder, start, ref_readers, mesh, 'reference')
    by_condition = {
        name: pair_values(config, decoder, readers[name], scores[name], references[name]) for name in CONDITIONS
    }
    users = {
        pair.id: user_of(tree) for tree in map(shards.__getitem__, conditions['true'].indices) for pair in tree.pairs
    }
    result = summarise(by_condition, users)
    result |= dict(
        objective=config.objective, step=0 if step == 0 else int(model.params_path.parent.name), data=shards.digest
    )
    result['counts'] = {name: plans[name].counts for name in CONDITIONS}
    result |= dict(max_trees=config.eval.max_trees, shuffle_seed=config.eval.shuffle_seed, model=model.weights)
    if processes.is_main():
        (workdir / 'evaluation').mkdir(exist_ok=True)
        write_json(workdir / 'evaluation' / evaluation_name(result['step'], shards.digest), result)
    return result


def evaluation_name(step: int, shards: str) -> str:
    """The file in WORKDIR/evaluation of a step, on the held-out shards of a digest."""
    return f'step-{step}-data-{shards[:8]}.json'


def _score(
    config: ConfigDict, decoder: Decoder, model: ModelFolder, readers: dict[str, RowReader], mesh: Mesh, label: str
) -> dict[str, np.ndarray]:
    """Scores of all replies of each reader's plan, [rows, R]."""
    params = load_params(decoder, model, mesh, seed=config.seed)
    scorer = RowScorer(config, decoder, mesh)
    batches = {name: in_order(range(len(reader)), config.eval.batch_rows) for name, reader in readers.items()}
    total, done, scores = sum(len(order) for order in batches.values()), 0, {}
    with Progress(label, total, unit='batches', enabled=processes.is_main()) as progress:
        for name, reader in readers.items():
            parts = []
            for part in scorer(params, reader, batches[name]):
                parts.append(part)
                done += 1
                progress.update(done)
            scores[name] = np.concatenate(parts)[: len(reader)]
    jax.tree.map(lambda x: x.delete(), params)  # the next model needs the room
    return scores


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require(config, 'model.path', 'eval.shards')
    workdir = workdir_path(flags.FLAGS.workdir)
    processes.start()
    result = evaluate(config, workdir, flags.FLAGS.step)
    if processes.is_main():
        print_table(result)


if __name__ == '__main__':
    define_flags()
    flags.DEFINE_integer(
        'step', None, 'Step of the workdir to evaluate, 0 for before training; the latest if not given.'
    )
    run(main)
