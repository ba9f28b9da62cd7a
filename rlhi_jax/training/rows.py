"""Opens the inputs of a training run (shards, row plan and template) and gives the shapes of its batches.

Shards contain interaction trees, and the row plan says which trees share a row (see `rlhi_jax.data.plan`).
"""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.plan import RowPlan, check_positions, load_plan, plan_identity
from rlhi_jax.data.rows import Batch, capacities, empty_row, stack
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.objectives import OBJECTIVES, Sides
from rlhi_jax.parallel.sharding import batch_sharding
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.model import reads_reference


def open_rows(config: ConfigDict, model: ModelFolder) -> tuple[RowPlan, Shards, ChatTemplate]:
    """Open the row plan, its shards and the model's template, and check that they belong together.

    Raises:
      UserError: the row plan, a shard or the template is missing or damaged; the plan was made for different data, a
        different template or different capacities; or the objective cannot learn from the pairs.
    """
    plan, _ = load_plan(Path(config.data.rows))
    shards = Shards(Path(config.data.shards))
    check_pairs(shards, config)
    template = ChatTemplate.load(model.tokenizer_path)
    expected = plan_identity(shards, template, capacities(config))
    sources = {
        'data': ('different data', 'config.data.shards'),
        'template': ('a different template', 'the model'),
        'capacities': ('different capacities', 'config.rows'),
    }
    for part, (other, source) in sources.items():
        if plan.identity[part] != expected[part]:
            raise UserError(
                f'the row plan {config.data.rows} was made for {other} and does not match {source}: make it again with '
                '`python -m data_pipelines.rows`'
            )
    check_positions(plan, shards, template, most=model.spec.max_positions)
    return plan, shards, template


def check_pairs(shards: Shards, config: ConfigDict) -> None:
    """Check that the objective can learn from every pair in the shards: from the replies that it has, and from ties.

    Raises:
      UserError: some pairs do not have the replies that the objective needs, or are ties that it cannot use.
    """
    objective = config.objective
    names = ('pairs_kept', 'pairs_with_one_side', 'pairs_with_chosen_alone', 'pairs_in_hindsight')
    pairs, one_sided, chosen_alone, in_hindsight = map(shards.count, names)
    needed = OBJECTIVES[objective].sides
    unsuitable = {
        Sides.BOTH: in_hindsight + one_sided,
        Sides.ONE_OR_BOTH: in_hindsight,
        Sides.CHOSEN_OR_BOTH: in_hindsight + one_sided - chosen_alone,
        Sides.HINDSIGHT: pairs - in_hindsight,
    }[needed]
    if unsuitable:
        feedback = {
            Sides.BOTH: 'paired',
            Sides.ONE_OR_BOTH: 'one_sided',
            Sides.CHOSEN_OR_BOTH: 'chosen',
            Sides.HINDSIGHT: 'hindsight',
        }[needed]
        raise UserError(
            f'config.objective={objective!r} learns from {needed.value}, but {unsuitable} of the {pairs} pairs in '
            f'{shards.folder} have other replies: rerun the stage shards with --config.data.feedback={feedback}'
        )
    tied, usable = shards.count('pairs_tied'), OBJECTIVES[objective].uses_ties
    if tied and not (usable and config[objective].ties):
        remedy = f'set config.{objective}.ties to a number above 0, or ' if usable else ''
        raise UserError(
            f'{tied} of the {pairs} pairs in {shards.folder} are ties, from which config.objective={objective!r} does '
            f'not learn: {remedy}rerun the stage shards with --config.data.ties=drop'
        )


def abstract_batch(config: ConfigDict, mesh: Mesh, count: int) -> Batch:
    """Return the shapes, dtypes and sharding that the train step expects of a batch of `count` rows."""
    row = empty_row(capacities(config))
    if reads_reference(config):
        row = row._replace(reference_logp_R=np.zeros(len(row.reply_last_R), np.float32))
    layout = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=layout), stack([row]))
