"""The one model that a process keeps in memory, such as a sampler or a scorer, with its compiled steps.

A model and its compiled steps are slow to make, so stages of one process share them; two models may not fit on the
device, so a new one is made only after the old one is gone.
"""

import gc
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar('T')


class Resident:
    """Keeps at most one model, under a key that holds everything the model depends on.

    >>> resident = Resident()
    >>> resident.get('small', lambda: 'a model'), resident.get('small', lambda: 'not made again')
    ('a model', 'a model')
    """

    def __init__(self):
        self._key: Hashable = None
        self._model: Any = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The model kept under `key`; if there is none, releases the model kept under another key, then calls `make`.

        Callers that hold a reference to the old model must drop it themselves, or its memory stays taken.
        """
        if self._model is None or self._key != key:
            self.release()
            self._key, self._model = key, make()
        return self._model

    def release(self) -> None:
        """Drop the model, so that its memory on the host and the device is free."""
        self._key = self._model = None
        gc.collect()  # jitted functions and their arguments refer to each other


RESIDENT = Resident()
