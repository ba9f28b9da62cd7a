"""The folder that a mixture of rewards is stored in: numbers in rewards.safetensors, and manifest.json about them."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder, read_json, write_json
from rlhi_jax.mixtures.low_rank import LowRank

_ABOUT, _NUMBERS = 'manifest.json', 'rewards.safetensors'


def save_rewards(folder: Path, rewards: LowRank, *, model: str, overwrite: bool = False, **about: Any) -> None:
    """Write rewards to a new folder.

    Args:
      model: the digest of the weights of the model that computed the states.
      overwrite: whether to replace a folder that exists; else a UserError is raised.
      about: further facts for manifest.json, such as the settings.
    """
    users = sorted(rewards.users)
    user_UK = np.array([rewards.users[user] for user in users]).reshape(len(users), len(rewards.generic_K))
    arrays = dict(scale_S=rewards.scale_S, basis_KS=rewards.basis_KS, generic_K=rewards.generic_K, user_UK=user_UK)
    with new_folder(folder, overwrite=overwrite) as made:
        save_file({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, made / _NUMBERS)
        write_json(made / _ABOUT, dict(about, kind='low_rank', model=model, users=users))


def open_rewards(folder: Path, *, model: str) -> LowRank:
    """Return the rewards in a folder.

    Args:
      model: the digest of the weights of the model that computes the states.

    Raises:
      UserError: the folder is missing or damaged, or its rewards are for states of another model.
    """
    remedy = f'fit the rewards again: python -m rlhi_jax.user_rewards fit --to={folder}'
    about = read_json(folder / _ABOUT, remedy, fields=('model', 'users'))
    if about['model'] != model:
        raise UserError(
            f'the rewards in {folder} are for the states of another model than --model: pass the model that they were '
            f'fitted with, or {remedy}'
        )
    arrays = load_file(folder / _NUMBERS)
    users = dict(zip(about['users'], arrays.pop('user_UK'), strict=True))
    return LowRank(**arrays, users=users)
