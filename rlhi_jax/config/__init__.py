"""The configuration: its schema, checks and paths. `python -m rlhi_jax.config` prints every key."""

from rlhi_jax.config.checks import check_config
from rlhi_jax.config.identity import settings_identity
from rlhi_jax.config.paths import comma_separated, is_endpoint, likelihood_path, listed, require, teacher_path
from rlhi_jax.config.schema import base_config, reference
from rlhi_jax.config.variants import on_two_cores, parse_variant

__all__ = [
    'base_config',
    'check_config',
    'comma_separated',
    'is_endpoint',
    'likelihood_path',
    'listed',
    'on_two_cores',
    'parse_variant',
    'reference',
    'require',
    'settings_identity',
    'teacher_path',
]
