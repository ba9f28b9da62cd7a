"""Reads fields of a Hugging Face config.json."""

from collections.abc import Mapping
from typing import Any

from rlhi_jax.io.errors import UserError

_MAX_NUMBER = 2**40  # a larger size or rotary base means that the file is damaged


def unsupported(fault: str, supported: str) -> UserError:
    """Return the error for a config that needs an unsupported feature."""
    return UserError(f'config.json: {fault}, but we support only {supported}: choose another model')


def number(fields: Mapping[str, Any], name: str, inside: str = '') -> float:
    """Return the value of a field that must be a number above 0.

    Args:
      fields: the fields of config.json or of an object in it.
      name: the name of the field.
      inside: for error messages, the name of the object in config.json; '' for config.json itself.

    Raises:
      UserError: the field is missing, or is not a number above 0.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MAX_NUMBER:
        raise UserError(f'config.json: {inside and inside + "."}{name} is {value!r:.40}: set it to a number above 0')
    return float(value)


def count(fields: Mapping[str, Any], name: str, inside: str = '') -> int:
    """Return the value of a field that must be a whole number above 0. The arguments are the same as for `number`.

    Raises:
      UserError: the field is missing, or is not a whole number above 0.
    """
    value = number(fields, name, inside)
    if value != int(value):
        raise UserError(f'config.json: {inside and inside + "."}{name} is {value!r}: set it to a whole number')
    return int(value)
