"""Keeps one model (for example, a sampler's or a scorer's) and its compiled steps in this process's memory.

Loading a model and compiling its steps is slow, so stages in the same process share them. Two models might not fit on
the device, so the old model is released before a new one is made.
"""

import gc
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar('T')


class Resident:
    """A store that holds at most one model; the caller's key must contain everything that the model depends on.

    >>> resident = Resident()
    >>> resident.get('small', lambda: 'a model'), resident.get('small', lambda: 'not made again')
    ('a model', 'a model')
    """

    def __init__(self):
        self._key: Hashable = None
        self._model: Any = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the model for `key`; if it is not stored, release any other model and call `make`.

        The old model's memory is freed only if callers have dropped their own references to that model.
        """
        if self._model is None or self._key != key:
            self.release()
            self._key, self._model = key, make()
        return self._model

    def release(self) -> None:
        """Drop the model to free its memory on the host and the device."""
        self._key = self._model = None
        gc.collect()  # jitted functions and their arguments refer to each other


RESIDENT = Resident()
