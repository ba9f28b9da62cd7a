"""Makes a decoder's parameters: randomly initialized, abstract (shapes only), or loaded onto a mesh.

The parameter tree of a decoder with adapters has an additional entry, `adapters`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import ModelFolder, abstract_with_shardings, restore_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.lora import Lora
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.parallel.sharding import shardings_of

Params = dict[str, Any]

_TRAINED_WITH_ADAPTERS = ('adapters', 'score')


def init_params(decoder: Decoder, key: jax.Array) -> Any:
    """Return randomly initialized parameters, each in a Flax box that names the parameter's logical axes."""
    row = jnp.zeros((1, 1), jnp.int32)
    variables = decoder.init(key, row, row, row + 1)
    return variables['params'] | ({'adapters': variables['adapters']} if decoder.lora else {})


def split_params(decoder: Decoder, params: Params) -> tuple[Params, Params]:
    """Return the parameters that training changes, and those that stay frozen.

    Without adapters, all parameters are trained. With adapters, only the adapters and a reward head are trained.
    """
    if not decoder.lora:
        return params, {}
    trained = {name: value for name, value in params.items() if name in _TRAINED_WITH_ADAPTERS}
    return trained, {name: value for name, value in params.items() if name not in trained}


def abstract_params(decoder: Decoder, mesh: Mesh) -> Params:
    """Return the shapes, dtypes and shardings of a decoder's parameters."""
    boxed = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    # We do not use `nn.unbox`, which would constrain these shapes as if they were arrays.
    shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    abstract = abstract_with_shardings(shapes, shardings_of(boxed, mesh))
    trained, frozen = split_params(decoder, abstract)
    return trained | jax.tree.map(lambda x: x.update(dtype=jnp.dtype(decoder.lora.base_dtype)), frozen)


def load_params(decoder: Decoder, model: ModelFolder, mesh: Mesh, *, seed: int) -> Params:
    """Load a model's parameters onto the mesh.

    With adapters, frozen parameters have the dtype `decoder.lora.base_dtype`; all other parameters are float32. The
    decoder may have a reward head or adapters that the model lacks; these are initialized randomly from the seed.
    """
    wanted, params = abstract_params(decoder, mesh), _stored_params(decoder.lora, model, mesh)
    params = {name: value for name, value in params.items() if name in wanted}
    missing = {name: value for name, value in wanted.items() if name not in params}
    if not missing:
        return params
    layout = jax.tree.map(lambda x: x.sharding, missing)
    fresh = jax.jit(lambda key: {n: nn.unbox(init_params(decoder, key)[n]) for n in missing}, out_shardings=layout)
    return params | fresh(jax.random.key(seed))


def _stored_params(lora: Lora | None, model: ModelFolder, mesh: Mesh) -> Params:
    """Load a model's parameters and merge its adapters into them.

    Parameters that stay frozen during training with `lora` get the dtype `lora.base_dtype`.
    """
    abstract = abstract_params(Decoder(model.spec, lora=lora), mesh)
    abstract.pop('adapters', None)
    if model.base is None:
        return restore_params(model, abstract)
    trained = load_trained(model, mesh)
    params = merge(_stored_params(None, model.base, mesh), trained.pop('adapters'), model.lora) | trained
    return {name: jax.tree.map(lambda x, like: x.astype(like.dtype), params[name], abstract[name]) for name in abstract}


def load_trained(model: ModelFolder, mesh: Mesh) -> Params:
    """Load the adapters of a model and, if it has one, its reward head."""
    decoder = Decoder(model.spec, lora=model.lora)
    trained, _ = split_params(decoder, abstract_params(decoder, mesh))
    return restore_params(model, trained)


def merge(params: Params, adapters: Params, lora: Lora) -> Params:
    """Merge adapters into the matrices that they adapt: W + scale · A B, in float32.

    The result is an equivalent model without adapters. It reuses the memory of the adapted matrices in `params`, so the
    caller must not use those matrices again.
    """
    layers = dict(params['layers'])
    for name in lora.targets:
        a, b = (adapters['layers'][f'{name}_{part}'] for part in 'ab')
        layers[name] = _add_product(layers[name], a, b, scale=lora.scale)
    return params | {'layers': layers}


def whole_params(decoder: Decoder, frozen: Params, trained: Params, mesh: Mesh) -> Params:
    """Return the parameters of a model in training, with any adapters merged, on the devices of a process.

    The parameters in training are not changed. With one process, the result stays on its devices. With several
    processes, each gets all parameters, through the host's memory.

    Args:
      decoder: the decoder in training.
      frozen: the frozen parameters; {} without adapters.
      trained: the trained parameters.
      mesh: devices of this process.
    """
    params = frozen | trained
    if decoder.lora:
        adapters = params.pop('adapters')
        params = _merged(params, adapters, decoder.lora)
    if jax.process_count() == 1:
        return params
    params = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params)
    layout = jax.tree.map(lambda x: x.sharding, abstract_params(Decoder(decoder.spec), mesh))
    return jax.tree.map(jax.device_put, params, layout)


@functools.partial(jax.jit, static_argnames='lora')
def _merged(params: Params, adapters: Params, lora: Lora) -> Params:
    return merge(params, adapters, lora)


@functools.partial(jax.jit, donate_argnums=0, static_argnames='scale')
def _add_product(matrix: jax.Array, a: jax.Array, b: jax.Array, *, scale: float) -> jax.Array:
    """Return a stack of matrices plus scale · A B, layer by layer; a matrix's input axes precede its output axes."""
    multiply = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    return matrix + scale * jax.vmap(multiply)(a, b)


def check_fit(mesh: Mesh, spec: ModelSpec, batch_rows: int, source: str = 'config.train.batch_rows') -> None:
    """Check that the model and the batch can be split evenly over the mesh.

    Args:
      mesh: the device mesh.
      spec: the model's architecture.
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
