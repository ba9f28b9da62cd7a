"""Repositories of the Hugging Face hub: `hf://OWNER/NAME[@REVISION][/PATH]` → files of one commit in the local cache.

PATH is a folder of the repository, or a pattern for its files such as data/train-*.parquet. Without a REVISION, the
newest commit is used. Downloaded files stay in the cache: an interrupted download resumes, and a complete one can be
read without a network. huggingface_hub does the work, and reads `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` and
`HF_ENDPOINT` as always.
"""

import dataclasses
import functools
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from httpx2 import HTTPError
from huggingface_hub import parse_hf_uri, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfUriError, RepositoryNotFoundError, RevisionNotFoundError

from rlhi_jax.io.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Downloaded files of a repository at one commit.

    Attributes:
      name: hf://OWNER/NAME@COMMIT, whichever revision was requested.
      folder: the local copy of the repository, or of the requested folder in it.
      files: the requested files, sorted by path.
    """

    name: str
    folder: Path
    files: Sequence[Path]


def on_hub(name: str) -> bool:
    return name.startswith('hf://')


@functools.cache  # one run sees one commit, even if someone pushes another meanwhile
def snapshot(name: str, kind: Literal['dataset', 'model'], patterns: Sequence[str], flag: str) -> Snapshot:
    """Download the files of a repository that match one of the patterns, unless the cache has them.

    Args:
      name: hf://OWNER/NAME[@REVISION][/PATH]; a data set may begin with hf://datasets/, as the hub shows it.
      kind: the kind of repository.
      patterns: patterns for file names, in any folder or, if `name` has a PATH, below it.
      flag: the flag that gave the name, for errors.

    Raises:
      UserError: the repository, revision or file does not exist or may not be read, or the hub cannot be reached.
    """
    try:
        uri = parse_hf_uri(f'hf://{kind}s/' + name.removeprefix('hf://').removeprefix(f'{kind}s/'))
    except HfUriError as error:
        raise UserError(
            f'{flag}: {name} is not of the form hf://OWNER/NAME[@REVISION][/PATH] ({one_line(error)}): correct it'
        ) from None
    path = uri.path_in_repo.rstrip('/')
    wanted = [path] if any(fnmatch(path, each) for each in patterns) else [f'{path}/{each}' for each in patterns]
    wanted = [each.removeprefix('/') for each in wanted]
    try:
        root = Path(snapshot_download(uri.id, repo_type=kind, revision=uri.revision, allow_patterns=wanted))
    except GatedRepoError:
        raise UserError(
            f'{flag}: {name} is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN'
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f'{flag}: the hub has no public {kind} {uri.id}: correct its name or, if it is private, log in with '
            '`hf auth login` or set HF_TOKEN'
        ) from None
    except RevisionNotFoundError:
        raise UserError(f'{flag}: {uri.id} has no revision {uri.revision}: name a branch, a tag or a commit') from None
    except (OSError, HTTPError) as error:
        raise UserError(
            f'{flag}: {name} cannot be downloaded ({one_line(error)}): run again when the hub can be reached (the '
            'download resumes), or name a local folder'
        ) from None
    below = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob('*')) if file.is_file()}
    files = [file for relative, file in below.items() if any(fnmatch(relative, each) for each in wanted)]
    if not files:
        raise UserError(f'{flag}: {name} has no file that matches {", ".join(wanted)}: name another path')
    return Snapshot(f'hf://{uri.id}@{root.name}', root / path, tuple(files))
