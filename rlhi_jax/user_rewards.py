"""Learn rewards that differ from user to user without personas: a few rewards over a frozen model's states, mixed.

    python -m rlhi_jax.user_rewards fit --config=configs/NAME.py --model=DIR --pairs=FILES --to=DIR
    python -m rlhi_jax.user_rewards evaluate --config=configs/NAME.py --model=DIR --pairs=FILES --rewards=DIR

`fit` learns the rewards and each user's weights from the preferences of many users (`rlhi_jax/mixtures/low_rank.py`).
Preferences without a user id teach what users have in common. The model can be the policy itself, so no second model is
needed; its own weights do not change.

`evaluate` says how well the rewards predict preferences of users who were absent from `fit`, once 0, 1, 2, 5, 10 and 20
preferences of each are known. All figures are for the same preferences: those that remain after the first 20 of each
user. `config.low_rank` has the settings.
"""

from absl import flags

from rlhi_jax.cli.program import define_flags, load_config, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    flags.DEFINE_string('model', None, 'Model folder or workdir of the model that computes the states.')
    flags.DEFINE_string('pairs', None, 'Preferences, as files, folders or hf://OWNER/NAME, between commas.')
    flags.DEFINE_string('split', 'train', 'The split to read from folders and hub data sets.')
    flags.DEFINE_string('rewards', None, 'evaluate: the folder that `fit` wrote.')
    flags.DEFINE_string('to', None, 'fit: the folder to write; evaluate: a JSON file to write, if set.')
    flags.DEFINE_bool('overwrite', False, 'fit: replace the folder --to.')
    COMMAND = start(commands=('fit', 'evaluate'))

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.preferences.files import Origin, named_preferences
from rlhi_jax.data.plan import nothing_fits
from rlhi_jax.data.rows import capacities
from rlhi_jax.data.tree import Preference
from rlhi_jax.evaluation.statistics import interval, shown
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, write_json
from rlhi_jax.mixtures.folder import open_rewards, save_rewards
from rlhi_jax.mixtures.low_rank import LowRank, fit
from rlhi_jax.models.checkpoints import ModelFolder, open_model
from rlhi_jax.parallel import processes
from rlhi_jax.scoring.gaps import pair_states

KNOWN = (0, 1, 2, 5, 10, 20)  # how many preferences of a new user are known
PAIRS = Origin('--pairs', '--split')


def states_of(
    config: ConfigDict, model: ModelFolder, preferences: Sequence[Preference]
) -> tuple[list[Preference], np.ndarray]:
    """Return the preferences that fit in a row, and the states of their replies, [N, 2, S] (see `pair_states`)."""
    states = pair_states(config, model, preferences)
    kept = [preference for preference in preferences if preference.id in states]
    if not kept:
        raise UserError(nothing_fits('--pairs', capacities(config)))
    return kept, np.stack([np.stack(states[preference.id]) for preference in kept])


def fit_rewards(config: ConfigDict, model_path: Path, pairs: str, split: str, to: Path, *, overwrite: bool) -> str:
    """Learn the rewards from preferences, write them to the folder `to`, and return a sentence about them.

    Raises:
      UserError: the model or the files are missing or damaged, or no preference can be used.
    """
    model, counts = open_model(model_path), Counter()
    preferences, _ = named_preferences(pairs, split, counts, PAIRS)
    kept, state_N2S = states_of(config, model, preferences)
    settings = config.low_rank
    rewards, losses = fit(
        state_N2S,
        [preference.user_id for preference in kept],
        rank=settings.rank,
        penalty=settings.penalty,
        steps=settings.steps,
        seed=config.seed,
    )
    if processes.is_main():
        about = dict(counts=dict(counts), pairs=len(kept), loss=losses[-1], settings=settings.to_dict())
        save_rewards(to, rewards, model=model.weights, overwrite=overwrite, **about)
    return f'{len(kept)} pairs of {len(rewards.users)} users: loss {losses[0]:.3f} → {losses[-1]:.3f} nats per pair'


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
    """Return the accuracy on new users' preferences by the number of their preferences that are known.

    Args:
      rewards: the rewards, fitted to other users.
      kept: the preferences.
      state_N2S: the states of their replies.
      penalty: `config.low_rank.penalty`.
    """
    new: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(kept)), key=lambda index: digest(kept[index].id)):
        new[kept[index].user_id].append(index)
    right: dict[int, dict[str, float]] = {}
    for count in KNOWN:
        right[count] = {}
        for user, indices in new.items():
            of_this = rewards.with_user(user, state_N2S[indices[:count]], penalty)
            chosen_N, rejected_N = of_this.rewards(state_N2S[indices[max(KNOWN) :]], [user])[..., 0].T
            verdicts = (chosen_N > rejected_N) + 0.5 * (chosen_N == rejected_N)
            names = (kept[index].id for index in indices[max(KNOWN) :])
            right[count] |= dict(zip(names, verdicts.tolist(), strict=True))
    users = {preference.id: preference.user_id for preference in kept}
    return dict(
        users=len(new),
        pairs=len(right[0]),
        accuracy={str(count): interval(values, users) for count, values in right.items()},
    )


def evaluate_rewards(config: ConfigDict, model_path: Path, pairs: str, split: str, folder: Path) -> dict[str, Any]:
    """Return the result of `cold_start` for the rewards in a folder.

    Raises:
      UserError: as for `of_new_users`, or the model, the rewards or the files are missing or damaged.
    """
    model, counts = open_model(model_path), Counter()
    rewards = open_rewards(folder, model=model.weights)
    preferences, _ = named_preferences(pairs, split, counts, PAIRS)
    kept, state_N2S = states_of(config, model, of_new_users(preferences, rewards))
    return cold_start(rewards, kept, state_N2S, config.low_rank.penalty) | dict(counts=dict(counts))


def main(command: str) -> None:
    config, given = load_config(flags.FLAGS.config), flags.FLAGS
    require_flags('model', 'pairs', *(['to'] if command == 'fit' else ['rewards']))
    processes.start()
    model = Path(given.model)
    if command == 'fit':
        line = fit_rewards(config, model, given.pairs, given.split, Path(given.to), overwrite=given.overwrite)
        print(f'{given.to}: {line}', flush=True)
        return
    result = evaluate_rewards(config, model, given.pairs, given.split, Path(given.rewards))
    if processes.is_main():
        if given.to:
            write_json(Path(given.to), result)
        print(f'{result["pairs"]} pairs of {result["users"]} new users')
        for count, accuracy in result['accuracy'].items():
            print(f'{count:>3} preferences known: accuracy {shown(accuracy, result["users"])}')


if __name__ == '__main__':
    run(lambda: main(COMMAND))
