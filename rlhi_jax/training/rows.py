"""The rows that a run trains on: the plan with its shards and template, and the shapes of a batch."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.plan import RowPlan, load_plan, plan_identity
from rlhi_jax.data.rows import capacities, empty_row
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel.sharding import batch_sharding
from rlhi_jax.tokenizers.template import ChatTemplate


def open_rows(config: ConfigDict, model: ModelFolder) -> tuple[RowPlan, Shards, ChatTemplate]:
    """The row plan, its shards and the model's template, checked against each other.

    Raises:
      UserError: one of them is missing or damaged, or the plan was made for other data, another template or other
        capacities.
    """
    plan, _ = load_plan(Path(config.data.rows))
    shards = Shards(Path(config.data.shards))
    template = ChatTemplate.load(model.tokenizer_path)
    expected = plan_identity(shards, template, capacities(config))
    sources = {'data': 'config.data.shards', 'template': 'the model', 'capacities': 'config.rows'}
    for part, source in sources.items():
        if plan.identity[part] != expected[part]:
            raise UserError(
                f'the row plan {config.data.rows} was made for other {part} than {source} now has: make it again with '
                '`python -m data_pipelines.rows`'
            )
    return plan, shards, template


def abstract_rows(config: ConfigDict, mesh: Mesh, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of `count` rows as the loader hands them out."""
    room = capacities(config)
    row = empty_row(room)
    shapes = {name: (column.shape, column.dtype) for name, column in row.items()}
    if OBJECTIVES[config.objective].uses_reference:
        shapes['reference_logp'] = ((room.replies,), jnp.float32)
    layout = batch_sharding(mesh)
    return {n: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=layout) for n, (shape, dtype) in shapes.items()}
