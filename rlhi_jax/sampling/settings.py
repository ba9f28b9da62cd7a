"""Reads and checks the sampling settings."""

import dataclasses

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The sampling settings: the values in `config.sampler`, and `config.seed`."""

    slots: int
    prompt_tokens: int
    new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ('slots', 'prompt_tokens', 'new_tokens'):
            if getattr(self, name) < 1:
                raise UserError(f'config.sampler.{name} is {getattr(self, name)}: it must be at least 1')
        if not self.temperature >= 0:
            raise UserError(f'config.sampler.temperature is {self.temperature}: it must be at least 0 (0 is greedy)')
        if not 0 < self.top_p <= 1:
            raise UserError(f'config.sampler.top_p is {self.top_p}: it must be in (0, 1]')


def sampling(config: ConfigDict) -> Sampling:
    """Return the settings in `config.sampler` and `config.seed`."""
    return Sampling(**config.sampler.to_dict(), seed=config.seed)
