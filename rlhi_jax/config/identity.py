"""Returns the settings that identify the output of a stage."""

from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config.schema import base_config

# These keys are left out at their defaults, where they change nothing, so that folders that were made before the keys
# existed stay up to date.
_LATER = dict(
    sampler=('top_k', 'min_p', 'repetition_penalty', 'stop', 'weights'), rewrites=('shows_reply', 'max_words')
)
_WITHOUT_EFFECT = dict(sampler=('logprobs',))  # these keys never change what a stage writes


def settings_identity(config: ConfigDict, section: str) -> dict[str, Any]:
    """Return the settings in a section of the config that can change the output of a stage, as JSON values."""
    defaults = base_config()[section]
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config[section].items()
        if name not in _WITHOUT_EFFECT.get(section, ())
        and (name not in _LATER.get(section, ()) or value != defaults[name])
    }
