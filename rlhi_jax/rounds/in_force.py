"""The policy in force after a round: the link `model` in the round's workdir."""

import os
from pathlib import Path


def put_in_force(workdir: Path, model: Path) -> None:
    """Let WORKDIR/model link to a model folder, in one step that cannot be interrupted halfway."""
    link, temporary = workdir / 'model', workdir / '.model.tmp'
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(model.resolve(), workdir.resolve()), target_is_directory=True)
    temporary.replace(link)
