"""Learn rewards of users over the states of a frozen model.

    python -m rlhi_jax.user_rewards fit --config=configs/NAME.py --model=DIR --pairs=FILES --to=DIR [--kind=KIND]
    python -m rlhi_jax.user_rewards evaluate --config=configs/NAME.py --model=DIR --pairs=FILES --rewards=DIR

The model can be the policy itself, so no second model is needed; its own weights do not change. `fit` learns one of two
kinds of rewards from the preferences of many users:

- low_rank: a few rewards, and each user's weights of these (`rlhi_jax/state_rewards/low_rank.py`). It reads no
  personas. Preferences without a user id teach what users have in common. With `config.low_rank.ties`, it also learns
  how readily each user calls two replies equally good. `evaluate` says how well the rewards predict preferences of
  users who were absent from `fit`, once 0, 1, 2, 5, 10 and 20 preferences of each are known. All figures are for the
  same preferences: those that remain after the first 20 of each user.
- persona_head: a small network that reads the states of the persona, the request and the reply
  (`rlhi_jax/state_rewards/persona_head.py`). `evaluate` gives the figures of `python -m rlhi_jax.evaluate reward`.

`config.low_rank` and `config.persona_head` have the settings.
"""

from absl import flags

from rlhi_jax.cli.program import define_flags, load_config, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    flags.DEFINE_string('model', None, 'Model folder or workdir of the model that computes the states.')
    flags.DEFINE_string('pairs', None, 'Preferences, as files, folders or hf://OWNER/NAME, between commas.')
    flags.DEFINE_string('split', 'train', 'The split to read from folders and hub data sets.')
    flags.DEFINE_enum('kind', 'low_rank', ['low_rank', 'persona_head'], 'fit: the kind of rewards.')
    flags.DEFINE_string('rewards', None, 'evaluate: the folder that `fit` wrote.')
    flags.DEFINE_string('to', None, 'fit: the folder to write; evaluate: a JSON file to write, if set.')
    flags.DEFINE_bool('overwrite', False, 'fit: replace the folder --to.')
    COMMAND = start(commands=('fit', 'evaluate'))

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.preferences.files import Origin, named_preferences
from rlhi_jax.data.plan import nothing_fits
from rlhi_jax.data.rows import capacities
from rlhi_jax.data.tree import Preference
from rlhi_jax.evaluation.conditions import conditioned
from rlhi_jax.evaluation.reward import evaluation
from rlhi_jax.evaluation.statistics import interval, shown
from rlhi_jax.evaluation.tables import print_reward_table
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, write_json
from rlhi_jax.models.checkpoints import ModelFolder, open_model
from rlhi_jax.parallel import processes
from rlhi_jax.scoring.gaps import pair_states, text_states
from rlhi_jax.state_rewards import low_rank, persona_head
from rlhi_jax.state_rewards.folder import open_rewards, save_rewards
from rlhi_jax.state_rewards.low_rank import LowRank
from rlhi_jax.state_rewards.persona_head import PersonaHead

KNOWN = (0, 1, 2, 5, 10, 20)  # how many preferences of a new user are known
PAIRS = Origin('--pairs', '--split')


def states_of(
    config: ConfigDict, model: ModelFolder, preferences: Sequence[Preference]
) -> tuple[list[Preference], np.ndarray]:
    """Return the preferences that fit in a row, and the states of their replies, [N, 2, S] (see `pair_states`)."""
    # Without users and personas, preferences with the same prompt share a tree, so each state is computed once.
    alike = [dataclasses.replace(preference, persona='', user_id='') for preference in preferences]
    states = pair_states(config, model, alike)
    kept = [preference for preference in preferences if preference.id in states]
    if not kept:
        raise UserError(nothing_fits('--pairs', capacities(config)))
    return kept, np.stack([np.stack(states[preference.id]) for preference in kept])


class Told(NamedTuple):
    """Preferences with the states of the texts that a head reads; the state of an empty persona is NaN."""

    preferences: list[Preference]
    persona_NS: np.ndarray
    request_NS: np.ndarray
    reply_N2S: np.ndarray


def told(config: ConfigDict, model: ModelFolder, conditions: Mapping[str, Sequence[Preference]]) -> dict[str, Told]:
    """Return what a head reads under each condition. All conditions have the same pairs, with different personas.

    Pairs are left out if they do not fit in a row, or if a persona or their last request does not.
    """
    first, *_ = conditions.values()
    kept, reply_N2S = states_of(config, model, first)
    texts = {(p.persona, p.prompt[-1][1]) for preferences in conditions.values() for p in preferences}
    states = text_states(config, model, itertools.chain.from_iterable(texts))
    states[''] = np.full_like(reply_N2S[0, 0], np.nan)
    fitting = [
        {p.id: p for p in preferences if {p.persona, p.prompt[-1][1]} <= states.keys()}
        for preferences in conditions.values()
    ]
    chosen = [number for number, p in enumerate(kept) if all(p.id in by_id for by_id in fitting)]
    if not chosen:
        raise UserError(nothing_fits('--pairs', capacities(config)))
    found = {}
    for name, by_id in zip(conditions, fitting, strict=True):
        preferences = [by_id[kept[number].id] for number in chosen]
        persona_NS = np.stack([states[p.persona] for p in preferences])
        request_NS = np.stack([states[p.prompt[-1][1]] for p in preferences])
        found[name] = Told(preferences, persona_NS, request_NS, reply_N2S[chosen])
    return found


def fit_rewards(
    config: ConfigDict, model_path: Path, pairs: str, split: str, to: Path, *, kind: str = 'low_rank', overwrite: bool
) -> str:
    """Learn rewards of a kind from preferences, write them to the folder `to`, and return a sentence about them.

    Raises:
      UserError: the model or the files are missing or damaged, or no preference can be used.
    """
    model, counts = open_model(model_path), Counter()
    settings = config[kind]
    is_low_rank = kind == 'low_rank'
    preferences, paths = named_preferences(pairs, split, counts, PAIRS, keep_ties=is_low_rank and settings.ties)
    common = dict(penalty=settings.penalty, steps=settings.steps, seed=config.seed)
    if is_low_rank:
        kept, state_N2S = states_of(config, model, preferences)
        users = [preference.user_id for preference in kept]
        rewards, losses = low_rank.fit(state_N2S, users, _tied(kept), rank=settings.rank, **common)
    else:
        kept, *states = told(config, model, dict(own=preferences))['own']
        rewards, losses = persona_head.fit(*states, width=settings.width, **common)
    if processes.is_main():
        files = [[path.name, file_digest(path)] for path in paths]
        about = dict(files=files, counts=dict(counts), pairs=len(kept), loss=losses[-1], settings=settings.to_dict())
        save_rewards(to, rewards, model=model.weights, overwrite=overwrite, **about)
    users = len({preference.user_id for preference in kept} - {''})
    return f'{len(kept)} pairs of {users} users: loss {losses[0]:.3f} → {losses[-1]:.3f} nats per pair'


def _tied(preferences: Sequence[Preference]) -> np.ndarray:
    return np.array([preference.tied for preference in preferences])


def of_new_users(preferences: Sequence[Preference], rewards: LowRank) -> list[Preference]:
    """Return the preferences of users who have more than max(KNOWN).

    Raises:
      UserError: there is no such user, or the rewards were fitted to one of the users.
    """
    counts = Counter(preference.user_id for preference in preferences if preference.user_id)
    if known := sorted(counts.keys() & rewards.users.keys()):
        raise UserError(f'--rewards were fitted to the user {known[0]!r} of --pairs: pass preferences of other users')
    if not (new := [preference for preference in preferences if counts[preference.user_id] > max(KNOWN)]):
        raise UserError(f'--pairs: no user has more than {max(KNOWN)} preferences: pass more preferences')
    return new


def cold_start(rewards: LowRank, kept: Sequence[Preference], state_N2S: np.ndarray, penalty: float) -> dict[str, Any]:
    """Return accuracy and log loss on new users' preferences by the number of their preferences that are known.

    A tie counts as half right, as do two replies with the same reward.

    Args:
      rewards: the rewards, fitted to other users.
      kept: the preferences.
      state_N2S: the states of their replies.
      penalty: `config.low_rank.penalty`.
    """
    new: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(kept)), key=lambda index: digest(kept[index].id)):
        new[kept[index].user_id].append(index)
    tied_N = _tied(kept)
    right: dict[int, dict[str, float]] = {count: {} for count in KNOWN}
    losses: dict[int, dict[str, float]] = {count: {} for count in KNOWN}
    for user, indices in new.items():
        unseen = indices[max(KNOWN) :]
        names = [kept[index].id for index in unseen]
        for count in KNOWN:
            known = indices[:count]
            of_this = rewards.with_user(user, state_N2S[known], tied_N[known], penalty)
            chosen_N, rejected_N = of_this.rewards(state_N2S[unseen], [user])[..., 0].T
            verdict_N = np.where((chosen_N == rejected_N) | tied_N[unseen], 0.5, chosen_N > rejected_N)
            loss_N = of_this.losses(user, state_N2S[unseen], tied_N[unseen])
            right[count] |= dict(zip(names, verdict_N.tolist(), strict=True))
            losses[count] |= dict(zip(names, loss_N.tolist(), strict=True))
    users = {preference.id: preference.user_id for preference in kept}

    def by_count(values: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
        return {str(count): interval(of_count, users) for count, of_count in values.items()}

    return dict(users=len(new), pairs=len(right[0]), accuracy=by_count(right), log_loss=by_count(losses))


def persona_conditions(
    config: ConfigDict, model: ModelFolder, rewards: PersonaHead, preferences: Sequence[Preference]
) -> dict[str, Any]:
    """Return the result of `rlhi_jax.evaluation.reward.evaluation` for a head."""
    gaps = {}
    for condition, (kept, *states) in told(
        config, model, conditioned(preferences, seed=config.eval.shuffle_seed)
    ).items():
        chosen_N, rejected_N = rewards.rewards(*states).T
        gaps[condition] = dict(zip((each.id for each in kept), (chosen_N - rejected_N).tolist(), strict=True))
    return evaluation(gaps, preferences)


def evaluate_rewards(config: ConfigDict, model_path: Path, pairs: str, split: str, folder: Path) -> dict[str, Any]:
    """Return the result of `cold_start` or of `persona_conditions` for the rewards in a folder.

    Raises:
      UserError: as for `of_new_users`, or the model, the rewards or the files are missing or damaged.
    """
    model, counts = open_model(model_path), Counter()
    rewards = open_rewards(folder, model=model.weights)
    is_low_rank = isinstance(rewards, LowRank)
    preferences, _ = named_preferences(
        pairs, split, counts, PAIRS, keep_ties=is_low_rank and np.isfinite(rewards.generic.log_tie)
    )
    if is_low_rank:
        kept, state_N2S = states_of(config, model, of_new_users(preferences, rewards))
        names = {preference.id for preference in of_new_users(kept, rewards)}  # some of a user's may not fit in a row
        chosen = [number for number, preference in enumerate(kept) if preference.id in names]
        result = cold_start(rewards, [kept[number] for number in chosen], state_N2S[chosen], config.low_rank.penalty)
    else:
        result = persona_conditions(config, model, rewards, preferences)
    return result | dict(counts=dict(counts))


def main(command: str) -> None:
    config, given = load_config(flags.FLAGS.config), flags.FLAGS
    require_flags('model', 'pairs', *(['to'] if command == 'fit' else ['rewards']))
    processes.start()
    model = Path(given.model)
    if command == 'fit':
        line = fit_rewards(
            config, model, given.pairs, given.split, Path(given.to), kind=given.kind, overwrite=given.overwrite
        )
        print(f'{given.to}: {line}', flush=True)
        return
    result = evaluate_rewards(config, model, given.pairs, given.split, Path(given.rewards))
    if not processes.is_main():
        return
    if given.to:
        write_json(Path(given.to), result)
    if 'conditions' in result:
        print_reward_table(result)
        return
    print(f'{result["pairs"]} pairs of {result["users"]} new users')
    for count, accuracy in result['accuracy'].items():
        loss = shown(result['log_loss'][count], result['users'])
        print(f'{count:>3} preferences known: accuracy {shown(accuracy, result["users"])}, log loss {loss}')


if __name__ == '__main__':
    run(lambda: main(COMMAND))
