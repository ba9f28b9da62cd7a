"""The folders in a loop's workdir (one for each stage and training run), and the opt-out list beside the workdir."""

import os
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError


class Method(NamedTuple):
    """The training runs and pair sources that a value of `config.loop.method` selects.

    Attributes:
      trains: the objective of each training run, in order; the last run trains the policy.
      sources: where the policy's pairs come from, as a value of `config.pairs.sources`.
    """

    trains: tuple[str, ...]
    sources: str

    @property
    def uses_rewrites(self) -> bool:
        """Whether rewrites become pairs for any of the training runs."""
        return len(self.trains) > 1 or EARLIER_SOURCES in self.sources.split(',')


METHODS = {
    'rewrites': Method(('dpo',), 'rewrites'),
    'rewards': Method(('reward', 'dpo'), 'candidates'),
    'both': Method(('reward', 'dpo'), 'rewrites,candidates'),
    'oracle': Method(('dpo',), 'candidates'),
}
# The stages whose records become pairs where 'rewrites' are a source, keyed by `config.pairs.against`.
REWRITTEN = dict(policy=('rewrites',), stranger=('strangers',), both=('rewrites', 'strangers'))
# The source of pairs for training before the policy's: candidates do not exist yet.
EARLIER_SOURCES = 'rewrites'
GATE_SPLIT = 'validation'  # the users and pairs that decide whether a new policy is promoted
GATE_USERS = 5  # fewer simulated users are not asked, because they are too few for an interval
_TRAINED = ('reward', 'sft', 'dpo')  # all objectives that any loop trains


def method_of(config: ConfigDict) -> Method:
    """Return the training runs and pair sources of a loop.

    No reward model is trained if one is given, or if the policy is the scorer. `config.loop.sft` adds a warm start.
    """
    method = METHODS[config.loop.method]
    *earlier, last = method.trains
    if config.candidates.reward_model or config.candidates.scorer == 'policy':
        earlier = []
    if config.loop.sft.epochs:
        earlier.append('sft')
    return method._replace(trains=(*earlier, last))


def is_gated(config: ConfigDict) -> bool:
    """Return whether a loop ends with the gate: it is wanted, and simulated users or held-out pairs can judge."""
    return config.loop.gate and (config.loop.simulated or method_of(config).uses_rewrites)


def users_judge(config: ConfigDict) -> bool:
    """Return whether the gate asks simulated users; if not, held-out pairs judge."""
    return config.loop.gate and config.loop.simulated and config.simulated.users.validation >= GATE_USERS


def is_online(config: ConfigDict, objective: str) -> bool:
    """Return whether a loop's training run for this objective is an online run (`rlhi_jax.online`)."""
    return config.online.prompts > 0 and objective == method_of(config).trains[-1]


def opt_out_list(config: ConfigDict, workdir: Path) -> str:
    """Return the path of the list of users whom a loop excludes. The file need not exist.

    The list is `config.ingest.opt_out` or, if that key is empty, the file WORKDIR.opt_out beside the workdir.

    Raises:
      UserError: the key is set, but there is a different list beside the workdir.
    """
    beside, named = workdir.resolve(), config.ingest.opt_out
    beside = beside.with_name(f'{beside.name}.opt_out')
    if named and beside.exists() and Path(named).expanduser().resolve() != beside:
        raise UserError(
            f'config.ingest.opt_out is {named}, so the users listed in {beside} would not be excluded: add them to '
            f'{named}, then remove {beside}'
        )
    return named or str(beside)


def users_talk(config: ConfigDict) -> bool:
    """Return whether the loop starts by generating conversations between simulated users and the policy.

    It does so if `config.loop.simulated` is true and `config.data.raw` is empty.
    """
    return config.loop.simulated and not config.data.raw


def with_paths(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return a copy of the config that places the folders of all stages, and any simulated raw data, in the workdir.

    If the opt-out list (see `opt_out_list`) exists, the copy excludes the users on it.

    Raises:
      UserError: as for `opt_out_list`.
    """
    config = config.copy_and_resolve_references()
    if Path(opted_out := opt_out_list(config, workdir)).exists():
        config.ingest.opt_out = opted_out
    for name in ('conversations', 'follow_ups', 'personas', 'rewrites', 'strangers', 'candidates', 'card'):
        config.data[name] = str(workdir / name)
    if not config.gate.model:  # else the stage compares two policies of the user's choice
        config.data.gate = str(workdir / 'gate')
    for name in ('pairs', 'shards', 'rows'):  # each training run has its own folders
        config.data[name] = ','.join(str(workdir / objective / name) for objective in _TRAINED)
    if users_talk(config):
        config.data.raw = str(workdir / 'raw')
    if config.loop.method == 'oracle':
        config.data.scores = str(workdir / 'scores')
        config.data.prompts = str(Path(config.data.raw) / 'prompts.jsonl')
    if config.loop.oracle_personas:
        config.data.personas = ''
    return config


def training_config(config: ConfigDict, workdir: Path, objective: str) -> ConfigDict:
    """Return the config of the training run for one objective, with its data folders in WORKDIR/OBJECTIVE.

    Args:
      config: the loop's config, as returned by `with_paths`.
    """
    config, method = config.copy_and_resolve_references(), method_of(config)
    is_policy = objective == method.trains[-1]
    config.objective = objective
    config.model.new_head = objective == 'reward'
    settings = config.loop[objective]
    config.train.epochs, config.optimizer.learning_rate = settings.epochs, settings.learning_rate
    config.pairs.sources = method.sources if is_policy else EARLIER_SOURCES
    if is_policy and 'sft' in method.trains:
        config.model.path = str(workdir / 'sft' / 'run')
    if is_online(config, objective) and 'reward' in method.trains:
        config.candidates.reward_model = str(workdir / 'reward' / 'run')
    if objective == 'sft':
        config.data.feedback = 'chosen'
    for name in ('pairs', 'shards', 'rows'):
        config.data[name] = str(workdir / objective / name)
    config.eval.shards = str(workdir / objective / 'validation')
    return config


def stage_config(config: ConfigDict, workdir: Path, stage: str, name: str = '') -> ConfigDict:
    """Return the config that the loop uses to run a stage in a workdir.

    For the stages pairs, shards and rows, `config.objective` selects the training run. The stage shards makes
    evaluation data if `config.data.split` is 'validation', and training data otherwise.

    Args:
      config: the loop's config.
      workdir: the loop's workdir.
      stage: the stage.
      name: tells apart parts of the loop that run the same stage: 'validation' for the shards of held-out pairs;
        'before' or 'after' for simulated users' satisfaction with the policy before or after training, and 'gate
        before' or 'gate after' for that of the users whom the gate asks. '' leaves the config's own values.
    """
    config = with_paths(config, workdir)
    if name == 'validation':
        config.data.split = 'validation'
    if name.endswith('after'):
        config.satisfaction.model = str(workdir / method_of(config).trains[-1] / 'run')
    if name.startswith('gate '):
        config.satisfaction.split = GATE_SPLIT
    if stage in ('pairs', 'shards', 'rows'):
        config = training_config(config, workdir, config.objective)
        if config.data.split == 'validation':
            config.data.shards, config.data.feedback = config.eval.shards, 'paired'  # evaluations compare both sides
    if stage == 'candidates':
        trains = method_of(config).trains
        if 'reward' in trains:
            config.candidates.reward_model = str(workdir / 'reward' / 'run')
        if 'sft' in trains:
            config.model.path = str(workdir / 'sft' / 'run')
    if stage == 'satisfaction':
        when = name.replace(' ', '_') or ('after' if config.satisfaction.model else 'before')
        config.data.satisfaction = str(workdir / 'satisfaction' / when)
        if config.satisfaction.personas == 'stated':
            config.data.personas = ''
    if stage == 'gate':
        trains = method_of(config).trains
        if not config.gate.model:
            config.gate.model = str(workdir / trains[-1] / 'run')
            judges = [str(workdir / 'satisfaction' / f'gate_{when}') for when in ('before', 'after')]
            can_judge = users_judge(config) and all(map(os.path.exists, judges))
            config.gate.satisfaction = ','.join(judges) if can_judge else ''
        offline = (objective for objective in trains if not is_online(config, objective))
        config.data.pairs = ','.join(str(workdir / objective / 'pairs') for objective in offline)
    return config
