"""Returns the settings that identify the output of stages."""

from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config.schema import base_config

# These are always part of an identity. Later keys are left out at their defaults, where they change nothing, so that
# folders made before the keys existed stay up to date.
_FIRST = ('slots', 'prompt_tokens', 'new_tokens', 'temperature', 'top_p')


def sampler_identity(config: ConfigDict) -> dict[str, Any]:
    """Return the settings in `config.sampler` that can change replies, as JSON values."""
    defaults = base_config().sampler
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.sampler.items()
        if name in _FIRST or value != defaults[name]
    }
    settings.pop('logprobs', None)  # they are not part of any stage's output
    return settings
