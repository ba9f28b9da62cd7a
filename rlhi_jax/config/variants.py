"""Variants of a config file (`--config=configs/NAME.py:VARIANT,smoke`), and settings that small runs share."""

from typing import NamedTuple

from ml_collections import ConfigDict

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


def on_two_cores(c: ConfigDict) -> None:
    """Set sizes so small that a round with a 135-million-parameter model takes minutes on two CPU cores.

    These sizes are far too small for a real round, so the report says that its figures are not evidence. Artefacts in
    the pairs (see `config.pairs.max_artefact_auc`) do not stop the round, because there are too few pairs to detect
    artefacts reliably. Call this function before you change other settings; otherwise, it may overwrite your changes.
    """
    c.loop.smoke, c.model.dtype = True, 'float32'  # not every CPU has bfloat16 instructions
    c.loop.reward.learning_rate, c.dpo.beta, c.optimizer.clip = 2e-5, 0.1, 1.0
    c.sampler.temperature, c.sampler.new_tokens, c.sampler.prompt_tokens, c.sampler.slots = 0.7, 160, 256, 8
    c.personas.samples, c.rewrites.samples, c.candidates.samples, c.candidates.max_prompts = 2, 2, 2, 4
    c.teacher.row_tokens, c.rows.tokens, c.rows.scored, c.rows.pairs = 384, 384, 256, 4
    c.train.batch_rows, c.train.accumulate, c.eval.batch_rows = 4, 4, 2
    c.gate.prompts, c.gate.samples = 8, 1
    c.pairs.accept_artefacts, c.pairs.min_pairs = True, 1  # too few pairs to detect artefacts
