"""Looks up paths in a config, and decides which model a stage uses."""

from operator import attrgetter

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError


def teacher_path(config: ConfigDict) -> str:
    """Return the teacher's model folder or endpoint: `teacher.path` or, if that is empty, the policy's folder.

    Raises:
      UserError: `model.path` is empty.
    """
    require(config, 'model.path')
    return config.teacher.path or config.model.path


def is_endpoint(path: str) -> bool:
    """Return whether a model path is the base URL of an OpenAI-compatible endpoint, not a folder."""
    return path.startswith(('http://', 'https://'))


def likelihood_path(config: ConfigDict) -> str:
    """Return the folder of the model that computes the log-probabilities of given texts.

    This model is normally the teacher. If the teacher is an endpoint, the policy replaces it, because endpoints do not
    provide the log-probabilities of a given text.
    """
    path = teacher_path(config)
    return config.model.path if is_endpoint(path) else path


def require(config: ConfigDict, *names: str) -> None:
    """Check that these paths are set in the config.

    Raises:
      UserError: a path is empty; the message names the first empty path.
    """
    for name in names:
        if not attrgetter(name)(config):
            raise UserError(f'config.{name} is empty: set it with --config.{name}=PATH')


def listed(config: ConfigDict, name: str) -> list[str]:
    """Return the comma-separated items in a key's value, without surrounding blanks.

    Args:
      config: the config.
      name: the key, such as 'data.raw'.

    Raises:
      UserError: the key or one of its items is empty. (As a path, '' would mean the current folder.)
    """
    require(config, name)
    return comma_separated(attrgetter(name)(config), f'config.{name}')


def comma_separated(text: str, option: str) -> list[str]:
    """Return the comma-separated items in an option's value, without surrounding blanks.

    Raises:
      UserError: an item is empty. The message names the option.
    """
    items = [item.strip() for item in text.split(',')]
    if '' in items:
        raise UserError(f'{option}={text} has an empty item: remove the extra comma')
    return items
