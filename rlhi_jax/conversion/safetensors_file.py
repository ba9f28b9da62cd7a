"""Reads and writes safetensors files one tensor at a time, with only the current tensor in memory.

A file starts with eight bytes that give the length of a JSON header. Next come the header (the dtype, shape and byte
range of each tensor, keyed by name) and the tensors' bytes.

The safetensors library, unlike this module, memory-maps whole files to read them, and needs all tensors in memory to
write a file.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from rlhi_jax.io.errors import UserError

DTYPES = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype(ml_dtypes.bfloat16)}

MAX_HEADER = 100 * 2**20  # bytes, the limit of the safetensors library


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file. Its data begins `start` bytes into the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Read the tensor in its stored dtype.

        Raises:
          UserError: the tensor's type is not one of `DTYPES`.
        """
        if self.dtype not in DTYPES:
            raise UserError(
                f'{self.file}: tensor {self.name} has type {self.dtype}: convert it to one of {", ".join(DTYPES)}'
            )
        with open(self.file, 'rb') as f:
            f.seek(self.start)
            return np.fromfile(f, DTYPES[self.dtype], math.prod(self.shape)).reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors in a safetensors file, keyed by name, without reading their data.

    Raises:
      UserError: the file is missing, damaged or cut short.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as f:
            size = os.fstat(f.fileno()).st_size
            length = int.from_bytes(f.read(8), 'little')
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ValueError(f'it claims a header of {length} bytes in a file of {size} bytes')
            header = json.loads(f.read(length))
        header.pop('__metadata__', None)
        tensors, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
            start, stop = entry['data_offsets']
            dtype, shape = entry['dtype'], tuple(entry['shape'])
            if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
                raise ValueError(f'the shape and offsets of tensor {name} are not all non-negative integers')
            if start != end or stop < start:
                raise ValueError(f'tensor {name} does not begin where the previous tensor ends')
            if dtype in DTYPES and stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
                raise ValueError(f'tensor {name} has the wrong number of bytes')
            tensors[name] = StoredTensor(path, name, dtype, shape, 8 + length + start)
            end = stop
        if 8 + length + end != size:
            raise ValueError(f'its header describes {8 + length + end} bytes, but the file has {size}')
    except FileNotFoundError:
        raise UserError(f'{path} does not exist, so the model folder is incomplete: download the model again') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is damaged or cut short ({error}): download it again') from None
    return tensors


def write_tensors(
    path: Path,
    tensors: Sequence[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
    dtype: str,
    metadata: dict[str, str],
) -> None:
    """Write a safetensors file, creating each array only when it is needed.

    Args:
      path: the file to write.
      tensors: the name and shape of each tensor, and a function that returns its array.
      dtype: one of `DTYPES`; arrays are cast to it, rounding to the nearest value.
      metadata: strings for the header, keyed by name.
    """
    header, end = {'__metadata__': metadata}, 0
    for name, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}
    data = json.dumps(header, separators=(',', ':')).encode()
    data += b' ' * (-len(data) % 8)  # tensors start at a multiple of eight bytes, so that they can be memory-mapped
    with open(path, 'wb') as f:
        f.write(len(data).to_bytes(8, 'little') + data)
        for _, _, array in tensors:
            np.ascontiguousarray(array(), DTYPES[dtype]).tofile(f)
        f.flush()
        os.fsync(f.fileno())
