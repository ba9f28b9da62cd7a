"""Whether a configuration can be meant: its keys and their types, against the defaults; then its values."""

import math
import shlex
from operator import attrgetter
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError

# Named here and not imported, so that a config is read without JAX; a test holds them to the code.
OBJECTIVES = ('dpo', 'reward', 'sft')
REMAT_POLICIES = ('save_all', 'save_dots', 'save_attention', 'save_nothing')
VARIANTS = ('sigmoid', 'hinge', 'ipo')


def check_config(config: ConfigDict, defaults: ConfigDict) -> ConfigDict:
    """Check a configuration against the keys and types of `rlhi_jax.config.base_config()`, then its values.

    Raises:
      UserError: naming the key and what it may be.
    """
    if config is None:
        raise UserError('--config is missing, or its get_config() returns nothing: pass --config=configs/NAME.py')
    if not isinstance(config, ConfigDict):
        raise UserError(
            '--config: get_config() must return what rlhi_jax.config.base_config() gave, with some keys changed'
        )
    _check_keys('config', config, defaults)
    choices = {
        'objective': (config.objective, OBJECTIVES),
        'model.dtype': (config.model.dtype, ('float32', 'bfloat16')),
        'model.remat': (config.model.remat, REMAT_POLICIES),
        'optimizer.schedule': (config.optimizer.schedule, ('constant', 'linear', 'cosine')),
        'dpo.variant': (config.dpo.variant, VARIANTS),
        'loop.method': (config.loop.method, ('rewrites', 'rewards', 'both', 'oracle')),
        'follow_ups.labeller': (config.follow_ups.labeller, ('teacher', 'head')),
        'personas.scope': (config.personas.scope, ('earlier_conversations', 'first_k_turns')),
        'personas.writer': (config.personas.writer, ('teacher', 'quotes')),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f'config.{name} is {value!r}: choose one of {", ".join(allowed)}')
    if not {'own', 'opposing'} <= set(config.satisfaction.conditions.split(',')) <= {'own', 'opposing', 'empty'}:
        raise UserError(
            f"config.satisfaction.conditions is {config.satisfaction.conditions!r}: name 'own', 'opposing' and, if "
            "wanted, 'empty', joined by commas without spaces"
        )
    at_least = {
        2: ('personas.first_k',),  # what a user says of a reply comes in their second turn at the earliest
        1: (
            'rows.tokens',
            'rows.scored',
            'rows.pairs',
            'train.epochs',
            'train.batch_rows',
            'train.accumulate',
            'model.logprob_chunk',
            'checkpoint.every_steps',
        )
        + ('checkpoint.keep', 'log.every_steps', 'data.threads', 'data.trees_per_shard', 'eval.batch_rows')
        + ('candidates.samples', 'teacher.row_tokens', 'teacher.attempts', 'teacher.concurrency', 'teacher.timeout')
        + ('personas.samples', 'personas.max_claims', 'personas.max_tokens', 'ingest.workers')
        + ('rewrites.samples', 'pairs.min_pairs', 'loop.reward.epochs', 'loop.dpo.epochs'),
        0: (
            'follow_ups.min_confidence',
            'pairs.margin',
            'rewrites.margin',
            'teacher.temperature',
            'teacher.retries',
            'teacher.budget',
            'teacher.price_in',
            'teacher.price_out',
            'ingest.max_conversations',
            'ingest.max_per_user',
            'ingest.max_nearly_same',
            'ingest.max_characters',
            'rewrites.max_turns',
            'candidates.max_prompts',
            'satisfaction.max_prompts',
            'simulated.users.train',
            'simulated.users.gate',
            'simulated.users.test',
            'simulated.conversations',
            'simulated.prompts',
            'simulated.special_every',
            'train.max_steps',
            'eval.max_trees',
            'optimizer.warmup_steps',
            'optimizer.learning_rate',
            'loop.reward.learning_rate',
            'loop.dpo.learning_rate',
            'optimizer.clip',
            'optimizer.eps',
            'optimizer.weight_decay',
            'reward.center',
        ),
    }
    for bound, names in at_least.items():
        for name in names:
            value = attrgetter(name)(config)
            if not math.isfinite(value) or value < bound:
                raise UserError(f'config.{name} is {value}: it must be at least {bound}')
    for name in ('model.path', 'candidates.reward_model', 'satisfaction.model'):
        if '://' in attrgetter(name)(config):
            raise UserError(
                f'config.{name} is a URL: name a folder made by `python -m rlhi_jax.convert import` or a training '
                'workdir; only config.teacher.path may be an endpoint'
            )
    _check_teacher(config.teacher.path, config.teacher.model)
    if not 0 <= config.ingest.heldout < 1:
        raise UserError(f'config.ingest.heldout is {config.ingest.heldout}: it must be at least 0, below 1')
    if not 0 < config.ingest.similarity <= 0.96:  # for more, sketches have too few numbers
        raise UserError(f'config.ingest.similarity is {config.ingest.similarity}: it must be above 0, at most 0.96')
    if config.beam and not _are_options(config.beam):
        raise UserError(f'config.beam is {config.beam!r}: give options of Beam, such as --runner=DirectRunner')
    if not 0 <= config.pairs.max_artefact_auc <= 1:
        raise UserError(f'config.pairs.max_artefact_auc is {config.pairs.max_artefact_auc}: it must be from 0 to 1')
    if not math.isfinite(config.rewrites.min_gain):
        raise UserError(f'config.rewrites.min_gain is {config.rewrites.min_gain}: it must be a number of nats')
    if not 0 < config.rewrites.max_resemblance <= 1:
        raise UserError(
            f'config.rewrites.max_resemblance is {config.rewrites.max_resemblance}: it must be above 0, at most 1'
        )
    if not config.dpo.beta > 0:
        raise UserError(f'config.dpo.beta is {config.dpo.beta}: it must be above 0')
    if not 0 <= config.dpo.label_smoothing < 0.5:
        raise UserError(f'config.dpo.label_smoothing is {config.dpo.label_smoothing}: it must be in [0, 0.5)')
    if config.train.batch_rows % config.train.accumulate:
        raise UserError(
            f'config.train.accumulate ({config.train.accumulate}) must divide config.train.batch_rows '
            f'({config.train.batch_rows})'
        )
    scored = config.rows.scored
    if scored % min(config.model.logprob_chunk, scored):
        raise UserError(
            f'config.model.logprob_chunk ({config.model.logprob_chunk}) must divide config.rows.scored ({scored})'
        )
    return config


def _check_teacher(path: str, model: str) -> None:
    """What begins as a URL must be the base of an endpoint's, to which paths are added; all else is a folder."""
    if not path.lower().startswith(('http:', 'https:')):
        return
    try:
        url = urlsplit(path)
        good = url.hostname and url.port != 0 and url.username is None
    except ValueError:  # of a port or of brackets
        good = False
    plain = path.isascii() and path.isprintable() and not set(' ?#') & set(path)
    if not (good and plain and path.startswith(('http://', 'https://'))):
        raise UserError(
            'config.teacher.path: an endpoint is http(s)://HOST[:PORT]/PATH in ASCII without blanks, ? and #, and '
            'without user and password, which would be written down: name the environment variable of the key with '
            'config.teacher.key_variable'
        )
    if not model:
        raise UserError('config.teacher.model is empty: name the model as config.teacher.path knows it')


def _are_options(text: str) -> bool:
    """Whether a text is words as a shell reads them, the first of which is an option."""
    try:
        return shlex.split(text)[0].startswith('--')
    except (ValueError, IndexError):
        return False


def _check_keys(path: str, config: ConfigDict, defaults: ConfigDict) -> None:
    for key in sorted(set(config) | set(defaults)):
        name = f'{path}.{key}'
        if key not in defaults:
            raise UserError(
                f'{name} is no known key: remove it or mend its name (known: {", ".join(sorted(defaults))})'
            )
        if key not in config:
            raise UserError(f'{name} is missing: start the config from rlhi_jax.config.base_config()')
        default, value = defaults[key], config[key]
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f'{name} must be a section of keys, not {value!r}')
            _check_keys(name, value, default)
        elif type(value) is not type(default):
            kind, given = type(default).__name__, type(value).__name__
            raise UserError(f'{name} is {value!r} ({given}): it must be of type {kind}, such as {default!r}')
