"""Variants of a config file: the text after the colon in `--config=configs/NAME.py:VARIANT,smoke`."""

from typing import NamedTuple

from rlhi_jax.io.errors import UserError

SMOKE = 'smoke'


class Variant(NamedTuple):
    """A variant's name ('' if the config has no variants), and whether the variant is shrunk to a smoke test."""

    name: str
    smoke: bool


def parse_variant(text: str, names: tuple[str, ...] = ()) -> Variant:
    """Return the variant named by a string: a name, 'smoke', or both joined by a comma.

    Args:
      text: the argument of `get_config`; '' for the default variant.
      names: the config's variants, default first; empty if the config has no variants.

    Raises:
      UserError: the variant is unknown; the message lists the known variants.

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
