"""Configuration keys (each with a default, a meaning and allowed values) and the sections that group them."""

import dataclasses
import importlib
import math
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

Value = bool | int | float | str | tuple[str, ...]
_NUMBER_BOUNDS = {
    'at_least': lambda value, bound: value >= bound,
    'above': lambda value, bound: value > bound,
    'at_most': lambda value, bound: value <= bound,
    'below': lambda value, bound: value < bound,
}


@dataclasses.dataclass(frozen=True)
class Key:
    """A configuration key. Values have the same type as the default. Numbers are finite; tuples contain strings.

    Attributes:
      default: the value in `base_config()`.
      meaning: what the key sets, with its unit, for a reader who has not seen the code.
      choices: the allowed values of a text key.
      registry: 'MODULE:NAME' of a dictionary whose keys are the allowed values. The module is imported only to check a
        value other than the default.
      at_least: inclusive lower bound of a number.
      above: exclusive lower bound of a number.
      at_most: inclusive upper bound of a number.
      below: exclusive upper bound of a number.
    """

    default: Value
    meaning: str
    choices: tuple[str, ...] = ()
    registry: str = ''
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def bound(self) -> str:
        """Return the allowed values as words that can follow "it must be", or '' if any value of the type is allowed.

        >>> Key(0.5, 'Similarity.', above=0, at_most=0.96).bound
        'above 0 and at most 0.96'
        """
        if self.registry:
            return f'a name in {self.registry.replace(":", ".")}'
        if self.choices:
            return f'one of {", ".join(self.choices)}'
        if isinstance(self.default, tuple):
            return 'a tuple of non-empty strings'
        bounds = [f'{name.replace("_", " ")} {getattr(self, name)}' for name in self._bounds()]
        return ' and '.join(bounds) or ('finite' if isinstance(self.default, float) else '')

    def allows(self, value: Value) -> bool:
        """Return whether a value of the right type is allowed.

        >>> [Key(1.0, 'Rate.', at_least=0).allows(value) for value in (0.0, -0.1, float('inf'), float('nan'))]
        [True, False, False, False]
        """
        if self.registry:
            return value == self.default or value in self.registered()
        if self.choices:
            return value in self.choices
        if isinstance(value, tuple):
            return all(isinstance(item, str) and item for item in value)
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return all(_NUMBER_BOUNDS[name](value, getattr(self, name)) for name in self._bounds())

    def registered(self) -> tuple[str, ...]:
        """Return the names in the registry."""
        module, name = self.registry.split(':')
        return tuple(getattr(importlib.import_module(module), name))

    def _bounds(self) -> list[str]:
        return [name for name in _NUMBER_BOUNDS if getattr(self, name) is not None]


class Section:
    """A group of keys and subsections, with a description of the group."""

    def __init__(self, meaning: str, /, **parts: 'Key | Section'):
        self.meaning, self.parts = meaning, parts

    def to_config(self) -> ConfigDict:
        """Return the section's defaults as an unlocked ConfigDict."""
        return ConfigDict(
            {n: part.to_config() if isinstance(part, Section) else part.default for n, part in self.parts.items()}
        )


class Entry(NamedTuple):
    """A key or a section with its full name, such as `train.epochs`."""

    name: str
    part: Key | Section


def entries(section: Section, prefix: str = '') -> Iterator[Entry]:
    """Yield every key and section inside a section: keys first, then each subsection followed by its contents."""
    for name, part in sorted(section.parts.items(), key=lambda item: isinstance(item[1], Section)):
        yield Entry(prefix + name, part)
        if isinstance(part, Section):
            yield from entries(part, f'{prefix}{name}.')
