"""Paths that a config names, and which model a stage asks."""

from operator import attrgetter

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError


def teacher_path(config: ConfigDict) -> str:
    """The teacher's model folder or endpoint: `teacher.path`, or the policy's folder where it is empty.

    Raises:
      UserError: `model.path` is empty.
    """
    require(config, 'model.path')
    return config.teacher.path or config.model.path


def is_endpoint(path: str) -> bool:
    """Whether a model is the base URL of an OpenAI-compatible endpoint, not a folder."""
    return path.startswith(('http://', 'https://'))


def likelihood_path(config: ConfigDict) -> str:
    """The model folder that log-probabilities come from: the teacher, or the policy where the teacher is an endpoint.

    Endpoints do not expose log-probabilities of given text.
    """
    path = teacher_path(config)
    return config.model.path if is_endpoint(path) else path


def require(config: ConfigDict, *names: str) -> None:
    """Raise UserError for the first of these paths that the config leaves empty."""
    for name in names:
        if not attrgetter(name)(config):
            raise UserError(f'config.{name} is empty: set it in the config file or pass --config.{name}=PATH')
