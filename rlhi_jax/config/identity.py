"""Returns the settings that identify the output of a stage."""

from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config.schema import base_config

# These keys were added after the first folders were written. With their defaults, a stage writes what it wrote before.
# The identity leaves these defaults out, so that older folders stay up to date.
_LATER = dict(
    sampler=('top_k', 'min_p', 'repetition_penalty', 'stop', 'weights'),
    rewrites=('shows_reply', 'max_words', 'min_words'),
    strangers=('max_claims',),
    pairs=('against', 'length_penalty'),
)
_WITHOUT_EFFECT = dict(sampler=('logprobs',))  # these keys never change what a stage writes


def settings_identity(config: ConfigDict, section: str) -> dict[str, Any]:
    """Return, as JSON values, the settings in a config section that can change the output of a stage."""
    defaults = base_config()[section]
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config[section].items()
        if name not in _WITHOUT_EFFECT.get(section, ())
        and (name not in _LATER.get(section, ()) or value != defaults[name])
    }
