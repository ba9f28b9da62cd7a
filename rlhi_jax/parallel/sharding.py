"""The mesh, and the one table that lays logical axes of parameters and activations on it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhi_jax.io.errors import UserError

AXES = ('data', 'fsdp', 'tensor', 'context')

# `context` is reserved for splitting long rows; it must be 1 for now.
RULES = (
    ('batch', ('data', 'fsdp')),
    ('shared_rows', 'data'),  # the rows of all devices that share one copy of the parameters
    ('length', None),
    ('activation', None),
    ('embed', 'fsdp'),
    ('norm', None),
    ('vocab', 'tensor'),
    ('split_vocab', ('tensor', 'fsdp')),  # where the vocabulary is computed with, not stored
    ('heads', 'tensor'),
    ('kv_heads', 'tensor'),
    ('mlp', 'tensor'),
    ('head_dim', None),
    ('score', None),
    ('layers', None),
)


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or those given); one axis may be -1 and takes what is left.

    Raises:
      UserError: the axes' product is not the number of devices, or `context` is not 1.
    """
    sizes = {axis: sizes[axis] for axis in AXES}
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        raise UserError(f'config.mesh is {sizes}: every axis must be at least 1, and at most one may be -1')
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    if int(np.prod(list(sizes.values()))) != count:
        raise UserError(f'config.mesh is {sizes}, but there are {count} devices: make the product of its axes {count}')
    if sizes['context'] != 1:
        raise UserError('config.mesh.context is reserved: set it to 1')
    # A pod's axes may be split: heads over two of the four chips of a row, for one.
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings_of(abstract: Any, mesh: Mesh) -> Any:
    """NamedShardings of a boxed abstract tree (from `jax.eval_shape` of Flax's init), unboxed like the values."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def local_rows(sharding: NamedSharding, batch_rows: int) -> list[int]:
    """Places in a global batch of rows that this process's devices hold, in increasing order."""
    slices = sharding.addressable_devices_indices_map((batch_rows,)).values()
    return sorted({row for (own,) in slices for row in range(*own.indices(batch_rows))})


def to_global(rows: dict[str, np.ndarray], places: list[int], sharding: NamedSharding, batch_rows: int) -> Any:
    """Global arrays [batch_rows, ...] from this process's rows, which stand at `places` of the batch."""
    index = {place: i for i, place in enumerate(places)}

    def one(values: np.ndarray) -> jax.Array:
        def part(slices):
            return values[[index[row] for row in range(*slices[0].indices(batch_rows))]]

        return jax.make_array_from_callback((batch_rows, *values.shape[1:]), sharding, part)

    return {name: one(values) for name, values in rows.items()}


@contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Trace and run with logical axes laid on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield
