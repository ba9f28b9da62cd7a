"""Every configuration key with its meaning, default and bounds; checks of a config; and the paths that it names."""

from rlhi_jax.config.checks import check_config
from rlhi_jax.config.defaults import base_config
from rlhi_jax.config.paths import is_endpoint, likelihood_path, require, teacher_path

__all__ = ['base_config', 'check_config', 'is_endpoint', 'likelihood_path', 'require', 'teacher_path']
