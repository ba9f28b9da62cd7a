"""What every program on a trained or imported model sets up: mesh, decoder, parameters, rows."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.checkpoints import ModelFolder, abstract_with_shardings, restore_params
from rlhi_jax.config import capacities
from rlhi_jax.data.loader import RowReader, batches
from rlhi_jax.data.plan import RowPlan, load_plan, plan_identity
from rlhi_jax.data.rows import empty_row
from rlhi_jax.data.shards import Shards
from rlhi_jax.errors import UserError
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.scoring import Batch, Params, score_replies
from rlhi_jax.sharding import RULES, batch_sharding, local_rows, replicated, shardings_of, to_global
from rlhi_jax.tokenizers.template import ChatTemplate


@contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Trace and run with logical axes laid on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def make_decoder(config: ConfigDict, model: ModelFolder) -> Decoder:
    """The decoder that the objective trains: the model's own, or with a new reward head on it.

    Raises:
      UserError: the model's head is not the objective's and `config.model.new_head` does not ask for a new one.
    """
    head = OBJECTIVES[config.objective].head
    if head != model.spec.head and not (head == 'reward' and config.model.new_head):
        raise UserError(
            f'config.objective {config.objective!r} needs a model with a {head!r} head, but {model.path} has a '
            f'{model.spec.head!r} head: name another config.model.path'
            + (', or set config.model.new_head=True' if head == 'reward' else '')
        )
    if head == model.spec.head and config.model.new_head:
        raise UserError(f'config.model.new_head is set, but {model.path} has a {head!r} head already: unset it')
    spec = dataclasses.replace(model.spec, head=head)
    return Decoder(spec, dtype=jnp.dtype(config.model.dtype), remat=config.model.remat)


def sees_persona(config: ConfigDict) -> bool:
    """Whether the model in training reads the persona: the reward model's switch or the policy's."""
    return config.rm_sees_persona if OBJECTIVES[config.objective].head == 'reward' else config.policy_sees_persona


def init_params(decoder: Decoder, key: jax.Array) -> Any:
    """Fresh parameters, boxed with their logical axes."""
    row = jnp.zeros((1, 1), jnp.int32)
    return decoder.init(key, row, row, row + 1)['params']


def abstract_params(decoder: Decoder, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of a decoder's parameters."""
    boxed = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    # Not `nn.unbox`, which would constrain these shapes as if they were arrays.
    shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return abstract_with_shardings(shapes, shardings_of(boxed, mesh))


def load_params(decoder: Decoder, model: ModelFolder, mesh: Mesh, *, seed: int) -> Params:
    """A model's parameters on the mesh, float32; a reward head that the model lacks is drawn from the seed."""
    stored = Decoder(model.spec)
    params = restore_params(model, abstract_params(stored, mesh))
    if decoder.spec.head == model.spec.head:
        return params
    params.pop('unembed', None)
    sharding = abstract_params(decoder, mesh)['score'].sharding
    fresh = jax.jit(lambda key: nn.unbox(init_params(decoder, key))['score'], out_shardings=sharding)
    return params | {'score': fresh(jax.random.key(seed))}


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


def jit_score(config: ConfigDict, decoder: Decoder, mesh: Mesh) -> Callable[[Params, Batch], jax.Array]:
    """The jitted function from parameters and rows to the scores of replies, [B, R] float32 on every device."""

    def score(params: Params, rows: Batch) -> jax.Array:
        scores = score_replies(decoder, params, rows, chunk=config.model.logprob_chunk)
        return scores.reward_BR if decoder.spec.head == 'reward' else scores.logp_BR

    return jax.jit(score, out_shardings=replicated(mesh))


class RowScorer:
    """Scores of replies for given batches of rows: rewards, or log-probabilities, by the decoder's head."""

    def __init__(self, config: ConfigDict, decoder: Decoder, mesh: Mesh):
        self._mesh, self._threads = mesh, config.data.threads
        self._score = jit_score(config, decoder, mesh)

    def __call__(self, params: Params, reader: RowReader, order: list[list[int]]) -> Iterator[np.ndarray]:
        """Yield [rows, R] float32 for each batch of row numbers in `order` (-1 for padding), one after another."""
        sharding, batch_rows = batch_sharding(self._mesh), len(order[0])
        places = local_rows(sharding, batch_rows)
        read = reader.__getitem__
        for rows in batches(read, order, first_step=0, num_steps=len(order), local_rows=places, threads=self._threads):
            yield np.asarray(self._score(params, to_global(rows, places, sharding, batch_rows)))
