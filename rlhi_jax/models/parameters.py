"""A decoder's parameters: randomly initialized, abstract, or loaded onto a mesh."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import ModelFolder, abstract_with_shardings, restore_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.parallel.sharding import shardings_of

Params = dict[str, Any]


def init_params(decoder: Decoder, key: jax.Array) -> Any:
    """Return randomly initialized parameters, boxed with their logical axes."""
    row = jnp.zeros((1, 1), jnp.int32)
    return decoder.init(key, row, row, row + 1)['params']


def abstract_params(decoder: Decoder, mesh: Mesh) -> Params:
    """Return the shapes, dtypes and shardings of a decoder's parameters."""
    boxed = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    # We do not use `nn.unbox`, which would constrain these shapes as if they were arrays.
    shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return abstract_with_shardings(shapes, shardings_of(boxed, mesh))


def load_params(decoder: Decoder, model: ModelFolder, mesh: Mesh, *, seed: int) -> Params:
    """Load a model's parameters onto the mesh, in float32.

    If the decoder has a reward head and the model does not, the head is initialized randomly from the seed.
    """
    stored = Decoder(model.spec)
    params = restore_params(model, abstract_params(stored, mesh))
    if decoder.spec.head == model.spec.head:
        return params
    params.pop('unembed', None)
    sharding = abstract_params(decoder, mesh)['score'].sharding
    fresh = jax.jit(lambda key: nn.unbox(init_params(decoder, key))['score'], out_shardings=sharding)
    return params | {'score': fresh(jax.random.key(seed))}


def check_fit(mesh: Mesh, spec: ModelSpec, batch_rows: int, source: str = 'config.train.batch_rows') -> None:
    """Check that the model and the batch can be split evenly over the mesh.

    Args:
      mesh: the mesh.
      spec: the model.
      batch_rows: number of rows in a batch.
      source: the config key that sets `batch_rows`.

    Raises:
      UserError: the model or the batch cannot be split evenly over the mesh; the message names the dimension and the
        mesh axis.
    """
    needs = [
        ('tensor', 'num_heads', spec.num_heads),
        ('tensor', 'num_kv_heads', spec.num_kv_heads),
        ('tensor', 'mlp_width', spec.mlp_width),
        ('tensor', 'vocab_size', spec.vocab_size),
        ('fsdp', 'width', spec.width),
    ]
    for axis, name, value in needs:
        if value % mesh.shape[axis]:
            raise UserError(
                f"config.mesh.{axis} is {mesh.shape[axis]}, which does not divide the model's {name} of {value}: "
                f'choose a divisor of {value}'
            )
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_rows % shards:
        raise UserError(
            f'{source} is {batch_rows}, which is not a multiple of config.mesh.data * config.mesh.fsdp = {shards}: '
            f'choose a multiple of {shards}'
        )
