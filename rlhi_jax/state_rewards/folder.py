"""The folder that rewards are stored in: numbers in rewards.safetensors, and manifest.json about them."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder, read_json, write_json
from rlhi_jax.state_rewards.low_rank import LowRank, Taste
from rlhi_jax.state_rewards.persona_head import PersonaHead, Scale

Rewards = LowRank | PersonaHead
Arrays = dict[str, np.ndarray]

_ABOUT, _NUMBERS = 'manifest.json', 'rewards.safetensors'


def _of_low_rank(rewards: LowRank) -> Arrays:
    tastes = [rewards.users[user] for user in sorted(rewards.users)]
    return dict(
        scale_S=rewards.scale_S,
        basis_KS=rewards.basis_KS,
        generic_K=rewards.generic.weight_K,
        log_tie=np.array(rewards.generic.log_tie),
        user_UK=np.array([taste.weight_K for taste in tastes]).reshape(len(tastes), len(rewards.generic.weight_K)),
        user_log_tie_U=np.array([taste.log_tie for taste in tastes]),
    )


def _to_low_rank(arrays: Arrays, users: list[str]) -> LowRank:
    tastes = map(Taste, arrays['user_UK'], arrays['user_log_tie_U'].tolist())
    generic = Taste(arrays['generic_K'], arrays['log_tie'].item())
    return LowRank(arrays['scale_S'], arrays['basis_KS'], generic, dict(zip(users, tastes, strict=True)))


def _of_head(rewards: PersonaHead) -> Arrays:
    scales = {f'{name}_{field}': getattr(scale, field) for name, scale in rewards.scales.items() for field in _FIELDS}
    return scales | rewards.parameters


def _to_head(arrays: Arrays, _) -> PersonaHead:
    names = [name.removesuffix('_HS') for name in arrays if name.endswith('_HS')]
    scales = {name: Scale(*(arrays.pop(f'{name}_{field}') for field in _FIELDS)) for name in names}
    return PersonaHead(scales, arrays)


_FIELDS = Scale._fields
_OPENERS = dict(low_rank=_to_low_rank, persona_head=_to_head)


def save_rewards(folder: Path, rewards: Rewards, *, model: str, overwrite: bool = False, **about: Any) -> None:
    """Write rewards to a new folder.

    Args:
      model: the digest of the weights of the model that computed the states.
      overwrite: whether to replace a folder that exists; else a UserError is raised.
      about: further facts for manifest.json, such as the settings.
    """
    is_low_rank = isinstance(rewards, LowRank)
    arrays = _of_low_rank(rewards) if is_low_rank else _of_head(rewards)
    about |= dict(users=sorted(rewards.users)) if is_low_rank else {}
    with new_folder(folder, overwrite=overwrite) as made:
        save_file({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, made / _NUMBERS)
        write_json(made / _ABOUT, dict(about, kind='low_rank' if is_low_rank else 'persona_head', model=model))


def open_rewards(folder: Path, *, model: str) -> Rewards:
    """Return the rewards in a folder.

    Args:
      model: the digest of the weights of the model that computes the states.

    Raises:
      UserError: the folder is missing or damaged, or its rewards are for states of another model.
    """
    remedy = f'fit the rewards again: python -m rlhi_jax.user_rewards fit --to={folder}'
    about = read_json(folder / _ABOUT, remedy, fields=('model', 'kind'))
    if about['model'] != model:
        raise UserError(
            f'the rewards in {folder} are for the states of another model than --model: pass the model that they were '
            f'fitted with, or {remedy} --kind={about["kind"]}'
        )
    try:
        return _OPENERS[about['kind']](load_file(folder / _NUMBERS), about.get('users', []))
    except (KeyError, OSError, ValueError, SafetensorError) as error:
        raise UserError(f'the rewards in {folder} are damaged ({error!r}): {remedy}') from None
