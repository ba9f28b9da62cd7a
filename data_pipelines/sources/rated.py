"""What sources of rated replies share: folds, and a folder of training and held-out preferences."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, new_folder, write_bytes, write_json


def define_flags(*files: str) -> None:
    """--FILE for each file to read, --to, --folds, --fold and --overwrite."""
    for name in files:
        flags.DEFINE_string(name, None, f'{name}.jsonl as published.')
    flags.DEFINE_string('to', None, 'Folder to write.')
    flags.DEFINE_integer('folds', 5, 'What is held out together is split into this many folds by a hash of its name.')
    flags.DEFINE_integer('fold', 0, 'The fold that is held out.')
    flags.DEFINE_bool('overwrite', False, 'Replace the folder to write if it exists.')


def named_file(flag: str) -> Path:
    """The file that a flag names.

    Raises:
      UserError: there is no such file.
    """
    path = Path(flags.FLAGS[flag].value)
    if not path.is_file():
        raise UserError(f'--{flag}={path} does not exist: name {flag}.jsonl as published')
    return path


def held_out(name: Any, *, folds: int, fold: int) -> bool:
    """Whether what is called so belongs to the held-out fold, by a hash."""
    return int(digest(name)[:8], 16) % folds == fold


def write_preferences(
    stage: str, files: list[Path], counts: Counter, train: list[dict[str, Any]], heldout: list[dict[str, Any]]
) -> None:
    """Write --to: train.jsonl, heldout.jsonl and manifest.json.

    Raises:
      UserError: --to is a folder that is not to be replaced.
    """
    counts.update(train=len(train), heldout=len(heldout), with_persona=sum(bool(r['persona']) for r in train + heldout))
    with new_folder(Path(flags.FLAGS.to), overwrite=flags.FLAGS.overwrite) as folder:
        for name, records in (('train', train), ('heldout', heldout)):
            lines = (json.dumps(record, ensure_ascii=False) + '\n' for record in records)
            write_bytes(folder / f'{name}.jsonl', ''.join(lines).encode())
        made_from = {path.name: file_digest(path) for path in files}
        made_from |= dict(folds=flags.FLAGS.folds, fold=flags.FLAGS.fold)
        write_json(folder / 'manifest.json', dict(stage=stage, made_from=made_from, counts=counts))
    print(f'{flags.FLAGS.to}: {json.dumps(counts)}')
