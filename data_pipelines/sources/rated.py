"""Code that the sources `prism` and `mt_bench` share: flags, folds and output."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.core.records import Record
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, new_folder, write_bytes, write_json


def define_flags(*files: str) -> None:
    """Define a flag for the path of each input file, and the flags --to, --folds, --fold and --overwrite.

    Args:
      files: the names of the flags for input files.
    """
    for name in files:
        flags.DEFINE_string(name, None, f'Path of the published {name}.jsonl.')
    flags.DEFINE_string('to', None, 'Output folder.')
    flags.DEFINE_integer('folds', 5, 'Number of folds. A hash of the id puts each user or question into a fold.')
    flags.DEFINE_integer('fold', 0, 'Number of the held-out fold, counted from 0.')
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')


def named_file(flag: str) -> Path:
    """Return the file that a flag points to.

    Raises:
      UserError: the file does not exist.
    """
    path = Path(flags.FLAGS[flag].value)
    if not path.is_file():
        raise UserError(f'--{flag}={path} does not exist: set the flag to the path of the published {flag}.jsonl')
    return path


def held_out(name: Any, *, folds: int, fold: int) -> bool:
    """Whether a user or question is in the held-out fold. A hash of the id determines the fold."""
    return int(digest(name)[:8], 16) % folds == fold


def write_preferences(
    stage: str, files: Sequence[Path], counts: Counter, train: Sequence[Record], validation: Sequence[Record]
) -> None:
    """Write train.jsonl, validation.jsonl and manifest.json to the folder --to.

    Args:
      stage: the name of the source's program, such as 'sources.prism', for the manifest.
      files: the files that were read. The manifest stores their digests.
      counts: the numbers of items read and dropped, keyed by name.
      train: the training preferences.
      validation: the held-out preferences.

    Raises:
      UserError: --to exists and --overwrite is not set, or another program made that folder.
    """
    by_split = dict(train=train, validation=validation)
    counts.update({split: len(records) for split, records in by_split.items()})
    counts['with_persona'] += sum(bool(record['persona']) for records in by_split.values() for record in records)
    with new_folder(Path(flags.FLAGS.to), overwrite=flags.FLAGS.overwrite) as folder:
        for split, records in by_split.items():
            lines = (json.dumps(record, ensure_ascii=False) + '\n' for record in records)
            write_bytes(folder / f'{split}.jsonl', ''.join(lines).encode())
        made_from = {path.name: file_digest(path) for path in files}
        made_from |= dict(folds=flags.FLAGS.folds, fold=flags.FLAGS.fold)
        write_json(folder / 'manifest.json', dict(stage=stage, made_from=made_from, counts=counts))
    print(f'{flags.FLAGS.to}: {json.dumps(counts)}')
