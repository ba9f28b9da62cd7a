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
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ('slots', 'prompt_tokens', 'new_tokens'):
            if getattr(self, name) < 1:
                raise UserError(f'config.sampler.{name} is {getattr(self, name)}: it must be at least 1')
        if not self.temperature >= 0:
            raise UserError(
                f'config.sampler.temperature is {self.temperature}: it must be at least 0 (0 means greedy decoding)'
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f'config.sampler.top_p is {self.top_p}: it must be in (0, 1]')
        if self.top_k < 0:
            raise UserError(f'config.sampler.top_k is {self.top_k}: it must be at least 0 (0 turns top-k off)')
        if not 0 <= self.min_p <= 1:
            raise UserError(f'config.sampler.min_p is {self.min_p}: it must be in [0, 1] (0 turns min-p off)')
        if not self.repetition_penalty > 0:
            raise UserError(f'config.sampler.repetition_penalty is {self.repetition_penalty}: it must be above 0')
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f'config.sampler.stop is {self.stop!r}: it must be a tuple of non-empty strings')

    @property
    def penalizes(self) -> bool:
        """Whether the repetition penalty changes any logits."""
        return self.repetition_penalty != 1

    def before_stop(self, text: str) -> str:
        """Return the text before the first stop string in it, or the whole text if it contains none.

        >>> Sampling(1, 1, 1, stop=('END', 'b')).before_stop('a bEND')
        'a '
        """
        return text[: min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=len(text))]


def sampling(config: ConfigDict) -> Sampling:
    """Return the settings in `config.sampler` and `config.seed`."""
    return Sampling(**config.sampler.to_dict(), seed=config.seed)
