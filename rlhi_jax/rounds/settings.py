"""Checks a loop's settings, and defines which settings the loop ignores and which may change when it resumes."""

import functools
import json
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config import base_config, is_endpoint, require
from rlhi_jax.config.loop_paths import method_of
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import open_model, open_reward_model
from rlhi_jax.training.model import check_pad_token
from rlhi_jax.training.online import check_settings as check_online_settings
from rlhi_jax.training.workdir import refuse_difference

CHANGEABLE = (  # settings that may change when a loop resumes
    *('mesh', 'log', 'compilation_cache', 'beam'),
    # How requests are sent, not what they ask. (An endpoint's address may change too; a model folder's path must not.)
    *('teacher.key_variable', 'teacher.concurrency', 'teacher.timeout', 'teacher.retries'),
    *('teacher.budget', 'teacher.price_in', 'teacher.price_out', 'teacher.cache'),
    *('pairs.accept_artefacts', 'pairs.min_pairs'),  # may change after a check on the pairs stopped the run
    'ingest.opt_out',  # the ingest stage itself checks whether the list has changed
)
IGNORED = {  # settings that the loop ignores (only single programs use them), and what the loop uses instead
    'objective': 'config.loop.method',
    'train.epochs': 'config.loop.OBJECTIVE.epochs',
    'optimizer.learning_rate': 'config.loop.OBJECTIVE.learning_rate',
    'pairs.sources': 'config.loop.method',
    'eval.shards': 'the pairs that it holds out itself',
    **{
        f'data.{name}': 'folders in its workdir'
        for name in ('conversations', 'follow_ups', 'personas', 'rewrites', 'strangers')
    },
}


def check_settings(config: ConfigDict) -> None:
    """Reject a config whose settings contradict each other, and warn about changed settings that the loop ignores.

    Raises:
      UserError: settings contradict each other, `config.model.path` names no model, or `check_pad_token` rejects the
        model.
    """
    require(config, 'model.path')
    if 'reward' in method_of(config).trains:
        check_pad_token(open_model(config.model.path))
    if given := config.candidates.reward_model:
        open_reward_model(given, 'config.candidates.reward_model')
        if 'candidates' not in method_of(config).sources or config.loop.method == 'oracle':
            raise UserError(
                f'config.candidates.reward_model={given} scores nothing, because config.loop.method='
                f"{config.loop.method!r}: remove it, or set config.loop.method='rewards' or 'both'"
            )
        if config.candidates.scorer == 'policy':
            raise UserError(
                f"config.candidates.reward_model={given} scores nothing, because config.candidates.scorer='policy': "
                'remove one of them'
            )
    if config.loop.method == 'oracle' and not config.loop.simulated:
        raise UserError("config.loop.method='oracle' needs simulated users: set config.loop.simulated=True")
    if config.pairs.against != 'policy' and not method_of(config).uses_rewrites:
        raise UserError(
            f'config.pairs.against={config.pairs.against!r} needs rewrites, but config.loop.method='
            f"{config.loop.method!r} makes none: set config.loop.method='rewrites' or 'both'"
        )
    if config.online.prompts:
        if config.loop.method != 'rewards':
            raise UserError(
                f'config.online.prompts={config.online.prompts} trains on rewards alone, but config.loop.method='
                f"{config.loop.method!r}: set config.loop.method='rewards', or config.online.prompts=0"
            )
        check_online_settings(config)
    if config.loop.sft.epochs and config.loop.method == 'oracle':
        raise UserError(
            "config.loop.sft needs rewrites, but config.loop.method='oracle' makes none: set config.loop.sft.epochs=0"
        )
    if config.loop.oracle_personas and config.loop.method != 'oracle':
        raise UserError(
            f'config.loop.oracle_personas=True skips the conversations that config.loop.method={config.loop.method!r} '
            'needs: set config.loop.oracle_personas=False'
        )
    if given := [name for name in ('model', 'satisfaction') if config.gate[name]]:
        raise UserError(
            f'config.gate.{given[0]} is set, but the gate of a loop judges the policy that the loop trains: leave the '
            'key empty, or run `python -m data_pipelines.gate` by itself'
        )
    if config.loop.simulated and min(config.simulated.users.train, config.simulated.users.test) < 1:
        raise UserError(
            'the loop needs simulated users to train on and to evaluate on: set config.simulated.users.train and '
            'config.simulated.users.test to at least 1'
        )
    default = base_config()
    for name, instead in IGNORED.items():
        if attrgetter(name)(config) != attrgetter(name)(default):
            print(f'config.{name} is ignored here; the loop uses {instead}', file=sys.stderr, flush=True)


def claim(config: ConfigDict, workdir: Path, model: dict[str, Any], *, replace: bool = False) -> None:
    """Check that the workdir is new, or contains a loop with the same config and initial model.

    The settings in `CHANGEABLE` and the address of the teacher's endpoint may differ. In a new workdir, this function
    records the config and the model in loop.json.

    Args:
      config: the loop's config.
      workdir: the loop's folder.
      model: the identity of the initial model.
      replace: whether to skip the check, and record the config and the model in any workdir.

    Raises:
      UserError: the workdir contains a loop with a different config or model, and `replace` is false.
    """
    settings = _as_json(config)
    for name in CHANGEABLE + (('teacher.path',) if is_endpoint(config.teacher.path) else ()):
        *sections, key = name.split('.')
        del functools.reduce(dict.__getitem__, sections, settings)[key]
    claimed = dict(config=settings, model=model)
    path = workdir / 'loop.json'
    if path.exists() and not replace:
        stored = read_json(path, 'use a different --workdir', fields=('config', 'model'))
        defaults = dict(config=_as_json(base_config()))
        refuse_difference(f'--workdir={workdir} contains a loop', stored, claimed, 'pass --redo', defaults)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, claimed)


def _as_json(config: ConfigDict) -> dict[str, Any]:
    """Return a config in the form that loop.json stores, with lists instead of tuples."""
    return json.loads(json.dumps(config.to_dict()))
