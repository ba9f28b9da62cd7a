"""The device mesh, and the table that maps logical axes of parameters and activations to mesh axes.

Parameters and activations name their axes (`embed`, `heads`, …), and `RULES` says which mesh axes split each named
axis. An axis without a rule is an error; it is never replicated silently. It is also an error if one mesh axis would
split two axes of the same array.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhi_jax.data.rows import Batch
from rlhi_jax.io.errors import UserError

AXES = ('data', 'fsdp', 'tensor')

# The mesh axes that split each logical axis; () if the axis is not split.
RULES: dict[str, tuple[str, ...]] = {
    'batch': ('data', 'fsdp'),  # rows
    'shared_rows': ('data',),  # rows, where the devices that share one copy of the parameters process them together
    'length': (),
    'activation': (),  # the width of a hidden state
    'embed': ('fsdp',),  # the width, in parameters
    'norm': (),
    'vocab': ('tensor',),  # the vocabulary, in parameters
    'split_vocab': ('tensor', 'fsdp'),  # the vocabulary, where logits are computed
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'head_dim': (),
    'score': (),
    'rank': (),  # the rank of an adapter
    'layers': (),
}


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a device mesh with the given sizes.

    Args:
      sizes: the number of devices along each mesh axis. One size may be -1; that axis takes all remaining devices.
      devices: the devices, or None for all devices.

    Raises:
      UserError: a size is invalid, or the product of the sizes is not the number of devices.
    """
    sizes = {axis: sizes[axis] for axis in AXES}
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        raise UserError(f'config.mesh is {sizes}: set each axis to at least 1, except that one may be -1')
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    if int(np.prod(list(sizes.values()))) != count:
        raise UserError(f'config.mesh is {sizes}, but there are {count} devices: set sizes whose product is {count}')
    # A mesh axis may use part of a pod's physical axis, for example to split heads over two of a row's four chips.
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def local_mesh(sizes: dict[str, int]) -> Mesh:
    """Return the mesh on which this process samples and scores.

    A single process uses all devices of the run. If there are several processes, each uses only its own devices: the
    `tensor` axis keeps its size, and the `fsdp` axis takes the remaining devices.

    Raises:
      UserError: `make_mesh` rejects the sizes, or `tensor` does not divide the number of this process's devices.
    """
    if jax.process_count() == 1:
        return make_mesh(sizes)
    tensor, devices = sizes['tensor'], jax.local_devices()
    if tensor > 0 and len(devices) % tensor:
        raise UserError(
            f'config.mesh.tensor is {tensor}, which splits the model over devices of several processes, but each '
            f'process samples and scores on its own {len(devices)} devices: set config.mesh.tensor to a divisor of '
            f'{len(devices)}, or run this in a single process'
        )
    return make_mesh(dict(data=1, fsdp=1 if tensor == -1 else -1, tensor=tensor), devices)


def resolve(axes: Sequence[str | None], array: str) -> PartitionSpec:
    """Return the PartitionSpec for an array's logical axes, as given by `RULES`.

    >>> tuple(resolve(('vocab', 'embed', None), 'the parameter embed'))
    ('tensor', 'fsdp', None)

    Args:
      axes: logical axes, one per dimension; None for a dimension that is not split.
      array: a description of the array for error messages.

    Raises:
      ValueError: an axis has no rule, or one mesh axis would split two axes of the array.
    """
    split_by: dict[str, str] = {}
    entries: list[str | tuple[str, ...] | None] = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(
                f'{array} has the logical axis {axis!r}, which RULES in {__name__} does not list: use one of '
                f'{", ".join(RULES)}, or add a rule'
            )
        mesh_axes = () if axis is None else RULES[axis]
        for mesh_axis in mesh_axes:
            if mesh_axis in split_by:
                raise ValueError(
                    f'{array} has the axes {split_by[mesh_axis]!r} and {axis!r}, which would both be split over the '
                    f'mesh axis {mesh_axis!r}: use other axes, or change RULES in {__name__}'
                )
            split_by[mesh_axis] = axis
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*entries)


def shardings_of(abstract: Any, mesh: Mesh) -> Any:
    """Return a tree with each parameter's sharding in place of its Flax box.

    Args:
      abstract: the tree that `jax.eval_shape` returns for Flax's init: a box with shape and axis names per parameter.
      mesh: the device mesh.

    Raises:
      ValueError: a parameter does not name one logical axis per dimension, or `resolve` rejects the axes.
    """

    def one(path: tuple, box: Any) -> NamedSharding:
        parameter = f'the parameter {jax.tree_util.keystr(path, simple=True, separator="/")}'
        if not _is_box(box) or len(box.names) != box.value.ndim:
            raise ValueError(f'{parameter} does not name each of its axes: create it with nn.with_logical_partitioning')
        return NamedSharding(mesh, resolve(box.names, parameter))

    return jax.tree_util.tree_map_with_path(one, abstract, is_leaf=_is_box)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Shard an activation over the current mesh by its logical axes; without a mesh, return it unchanged.

    Raises:
      ValueError: `axes` does not have one entry per dimension, or `resolve` rejects the axes.
    """
    activation = f'an activation of shape {x.shape} and axes {tuple(axes)}'
    if len(axes) != x.ndim:
        raise ValueError(f'{activation}: pass one axis per dimension')
    layout = resolve(axes, activation)
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, layout)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits rows over the mesh axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a complete copy of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(sharding: NamedSharding, batch_rows: int) -> list[int]:
    """Return the global-batch indices of the rows on this process's devices, in increasing order."""
    slices = sharding.addressable_devices_indices_map((batch_rows,)).values()
    return sorted({row for (rows,) in slices for row in range(*rows.indices(batch_rows))})


def to_global(batch: Batch, local: Sequence[int], sharding: NamedSharding, batch_rows: int) -> Batch:
    """Make global arrays [batch_rows, ...] from this process's rows, whose indices in the global batch are `local`."""
    position = {row: i for i, row in enumerate(local)}

    def one(values: np.ndarray) -> jax.Array:
        def part(slices):
            return values[[position[row] for row in range(*slices[0].indices(batch_rows))]]

        return jax.make_array_from_callback((batch_rows, *values.shape[1:]), sharding, part)

    return jax.tree.map(one, batch)


@contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Make `mesh` the current mesh within the `with` block; `constrain` and attention use the current mesh."""
    with jax.set_mesh(mesh):
        yield
