"""The settings of low-rank adapters (LoRA, arXiv 2106.09685).

This module does not import JAX, so that programs without JAX can also check these settings.
"""

import dataclasses
import re
from typing import Any

from rlhi_jax.io.errors import UserError

MATRICES = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')  # the matrices of a layer, each of which can have an adapter


@dataclasses.dataclass(frozen=True)
class Lora:
    """The settings of a model's adapters. An adapter A, B changes the product x W to x W + scale · (x A) B.

    Attributes:
      rank: the number of columns of A and of rows of B.
      alpha: the scale is alpha / rank.
      targets: the adapted matrices, in the order of `MATRICES`.
      base_dtype: the dtype in which frozen parameters are kept in memory during training, 'float32' or 'bfloat16'.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_dtype: str = 'float32'

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def to_json(self) -> dict[str, Any]:
        """Return the settings that the merged model depends on."""
        return dict(rank=self.rank, alpha=self.alpha, targets=list(self.targets))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> 'Lora':
        return cls(fields['rank'], fields['alpha'], tuple(fields['targets']))


def lora_of(settings: Any) -> Lora | None:
    """Return the adapter settings in `config.lora`, or None if `config.lora.rank` is 0.

    Raises:
      UserError: `config.lora.targets` is not a regular expression, or matches no matrix.
    """
    if not settings.rank:
        return None
    names = ', '.join(f'layers/{name}' for name in MATRICES)
    try:
        pattern = re.compile(settings.targets)
    except re.error as error:
        raise UserError(
            f'config.lora.targets is {settings.targets!r}, which is not a regular expression ({error}): write one that '
            f'matches some of {names}'
        ) from None
    targets = tuple(name for name in MATRICES if pattern.fullmatch(f'layers/{name}'))
    if not targets:
        raise UserError(
            f'config.lora.targets is {settings.targets!r}, which matches no parameters: match one of {names}'
        )
    return Lora(settings.rank, settings.alpha, targets, settings.base_dtype)
