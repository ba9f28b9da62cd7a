"""Validates a configuration: first keys and types, then each value, then combinations of values."""

import shlex
from operator import attrgetter
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from rlhi_jax.config.keys import Key, Section
from rlhi_jax.config.schema import SCHEMA, reference, renamed
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.lora import lora_of


def check_config(config: ConfigDict) -> ConfigDict:
    """Return the configuration if it is valid.

    Raises:
      UserError: the configuration is not valid; the message names the key, its value and the allowed values.
    """
    if config is None:
        raise UserError('--config is missing or its get_config() returns nothing: pass --config=configs/NAME.py')
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'--config: get_config() returns a {type(config).__name__}: return the ConfigDict that '
            'rlhi_jax.config.base_config() makes'
        )
    _check_keys('config', config, SCHEMA)
    for name, part in reference():
        if isinstance(part, Key) and not part.allows(value := attrgetter(name)(config)):
            if choices := part.registered() if part.registry else part.choices:
                raise UserError(f'config.{name} is {value!r}: choose one of {", ".join(choices)}')
            raise UserError(f'config.{name} is {value}: it must be {part.bound}')
    for check in (
        _check_model_paths,
        _check_teacher,
        _check_beam,
        _check_rewrites,
        _check_conditions,
        _check_divisors,
        _check_lora,
    ):
        check(config)
    return config


def _check_keys(path: str, config: ConfigDict, section: Section) -> None:
    for key in sorted({*config, *section.parts}):
        name = f'{path}.{key}'
        if key not in section.parts:
            known = renamed(name.removeprefix('config.')) or f'known: {", ".join(sorted(section.parts))}'
            raise UserError(f'{name} is not a known key: remove or rename it ({known})')
        if key not in config:
            raise UserError(f'{name} is missing: make the config with rlhi_jax.config.base_config()')
        part, value = section.parts[key], config[key]
        if isinstance(part, Section):
            if not isinstance(value, ConfigDict):
                raise UserError(f'{name} is {value!r}, but it is a section of keys: set the keys in it instead')
            _check_keys(name, value, part)
        elif type(value) is not type(part.default):
            kind, given = type(part.default).__name__, type(value).__name__
            raise UserError(f'{name} is {value!r} ({given}): it must be of type {kind}, such as {part.default!r}')


def _check_model_paths(config: ConfigDict) -> None:
    for name in ('model.path', 'candidates.reward_model', 'satisfaction.model'):
        if '://' in attrgetter(name)(config):
            raise UserError(
                f'config.{name} is a URL, but only config.teacher.path may be a URL: set config.{name} to the path of '
                'a model folder'
            )


def _check_teacher(config: ConfigDict) -> None:
    """Check `teacher.path` if it looks like a URL: it must be a valid base URL, and `teacher.model` must be set.

    Any other path is a folder, and is not checked here.
    """
    path = config.teacher.path
    if not path.lower().startswith(('http:', 'https:')):
        return
    try:
        url = urlsplit(path)
        well_formed = url.hostname and url.port != 0 and url.username is None
    except ValueError:  # a bad port or unbalanced brackets
        well_formed = False
    plain = path.isascii() and path.isprintable() and not set(' ?#') & set(path)
    if not (well_formed and plain and path.startswith(('http://', 'https://'))):
        raise UserError(  # does not quote the path, which may contain a password
            'config.teacher.path is not an ASCII URL of the form http(s)://HOST[:PORT]/PATH: remove any username or '
            "password, spaces, '?' and '#' from it"
        )
    if not config.teacher.model:
        raise UserError('config.teacher.model is empty: set it to the name of the model at config.teacher.path')


def _check_beam(config: ConfigDict) -> None:
    if not config.beam:
        return
    try:
        is_option = shlex.split(config.beam)[0].startswith('--')
    except (ValueError, IndexError):  # an unclosed quote, or only spaces
        is_option = False
    if not is_option:
        raise UserError(f'config.beam is {config.beam!r}: set it to Apache Beam options such as --runner=DirectRunner')


def _check_rewrites(config: ConfigDict) -> None:
    least, most = config.rewrites.min_words, config.rewrites.max_words
    if least > most:
        raise UserError(
            f'config.rewrites.min_words ({least}) is larger than config.rewrites.max_words ({most}): set '
            f'config.rewrites.max_words to at least {least}'
        )


def _check_conditions(config: ConfigDict) -> None:
    text = config.satisfaction.conditions
    if not {'own', 'other'} <= set(text.split(',')) <= {'own', 'other', 'empty'}:
        raise UserError(
            f'config.satisfaction.conditions is {text!r}: list own, other and optionally empty, separated by commas '
            'without spaces'
        )


def _check_divisors(config: ConfigDict) -> None:
    rows, parts = config.train.batch_rows, config.train.accumulate
    if rows % parts:
        raise UserError(
            f'config.train.accumulate ({parts}) must divide config.train.batch_rows ({rows}): choose a divisor of '
            f'{rows}'
        )
    scored, chunk = config.rows.scored, config.model.logprob_chunk
    if scored % min(chunk, scored):
        raise UserError(
            f'config.model.logprob_chunk ({chunk}) must divide config.rows.scored ({scored}): choose a divisor of '
            f'{scored}'
        )


def _check_lora(config: ConfigDict) -> None:
    adapters, in_step = lora_of(config.lora), config.lora.reference == 'in_step'
    if adapters and in_step and config.policy_sees_persona != config.ref_sees_persona:
        raise UserError(
            "config.lora.reference is 'in_step', but config.ref_sees_persona differs from config.policy_sees_persona, "
            "so the reference model and the policy need different input: set config.lora.reference='cached'"
        )
