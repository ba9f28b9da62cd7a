"""The policy in force after a round: the link `model` in the round's workdir."""

import os
from pathlib import Path

from rlhi_jax.io.errors import UserError

LINK = 'model'


def put_in_force(workdir: Path, model: Path) -> None:
    """Let WORKDIR/model link to a model folder, in one step that cannot be interrupted halfway.

    Raises:
      UserError: WORKDIR/model is not a link, for example because the workdir is a copy made without links.
    """
    link, temporary = workdir / LINK, workdir / f'.{LINK}.tmp'
    if link.exists() and not link.is_symlink():
        raise UserError(f'{link} is not the link to the policy in force that the loop writes: move it elsewhere')
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(model.resolve(), workdir.resolve()), target_is_directory=True)
    temporary.replace(link)


def withdraw(workdir: Path) -> None:
    """Remove the link, because the run that it may lead to is about to be replaced."""
    if (link := workdir / LINK).is_symlink():
        link.unlink()
