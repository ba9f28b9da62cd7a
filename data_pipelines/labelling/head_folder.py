"""The manifest of a head's folder, read without scikit-learn, which takes a second to import."""

from pathlib import Path
from typing import Any

from rlhi_jax.io.files import file_digest, read_json

REMEDY = 'train a head with `python -m data_pipelines.head_labels`'


def head_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest in a head's folder.

    Raises:
      UserError: the folder does not contain a head.
    """
    return read_json(folder / 'manifest.json', REMEDY, fields=('labels', 'weights'))


def head_digest(folder: Path) -> str:
    """Return a digest that identifies the head in a folder.

    Raises:
      UserError: the folder does not contain a head.
    """
    head_manifest(folder)
    return file_digest(folder / 'manifest.json')
