"""Variants of a config file: the text after the colon in `--config=configs/NAME.py:VARIANT,smoke`."""

from typing import NamedTuple

from rlhi_jax.io.errors import UserError

SMOKE = 'smoke'


class Variant(NamedTuple):
    """A variant's name, '' where the config has none, and whether it is shrunk to a smoke test."""

    name: str
    smoke: bool


def parse_variant(text: str, names: tuple[str, ...] = ()) -> Variant:
    """The variant that a text asks for: a name, 'smoke', or both joined by a comma.

    Args:
      text: what `get_config` was called with; '' for the first name.
      names: the variants of the config, its default first; none if it has only itself and its smoke test.

    Raises:
      UserError: an unknown variant; the message lists the known ones.

    >>> parse_variant('dpo,smoke', ('reward', 'dpo')), parse_variant('', ('reward', 'dpo'))
    (Variant(name='dpo', smoke=True), Variant(name='reward', smoke=False))
    """
    parts = text.split(',') if text else []
    smoke = parts[-1:] == [SMOKE]
    name = ','.join(parts[:-1] if smoke else parts) or (names[0] if names else '')
    if name not in (names or ('',)):
        known = [*names, *(f'{each},{SMOKE}' for each in names)] if names else [SMOKE]
        raise UserError(f'config variant {text!r} is unknown: choose one of {", ".join(known)}')
    return Variant(name, smoke)
