"""Downloads files named hf://OWNER/NAME[@REVISION][/PATH] from the Hugging Face hub to a local cache.

PATH is a folder in the repository, or a file pattern such as data/train-*.parquet. All files come from the same commit:
REVISION or, by default, the newest commit. Downloaded files stay in the cache: an interrupted download resumes, and
complete downloads can be read without a network connection. The library huggingface_hub downloads the files; it reads
`HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_ENDPOINT` as usual.
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
    """Files downloaded from a repository at one commit.

    Attributes:
      name: hf://OWNER/NAME@COMMIT, even if a branch or a tag was requested.
      folder: the local copy of the repository, or of the requested folder in it.
      files: the requested files, sorted by path.
    """

    name: str
    folder: Path
    files: Sequence[Path]


def on_hub(name: str) -> bool:
    return name.startswith('hf://')


@functools.cache  # a run always sees the same commit, even if someone pushes a new one
def snapshot(name: str, kind: Literal['dataset', 'model'], patterns: Sequence[str], flag: str) -> Snapshot:
    """Return the files in a repository that match any of the patterns, after downloading those not yet in the cache.

    Args:
      name: hf://OWNER/NAME[@REVISION][/PATH]; for a data set, hf://datasets/OWNER/... works too.
      kind: the kind of repository.
      patterns: shell-style patterns, such as *.parquet; * also matches slashes. They apply to paths in the repository
        or, if `name` has a PATH, to paths below PATH. If PATH itself matches one of the patterns, PATH is used as the
        only pattern.
      flag: the flag or config key that set `name`, for error messages.

    Raises:
      UserError: the repository, revision or file does not exist or is not accessible, or the hub cannot be reached.
    """
    try:
        uri = parse_hf_uri(f'hf://{kind}s/' + name.removeprefix('hf://').removeprefix(f'{kind}s/'))
    except HfUriError as error:
        raise UserError(
            f'{flag}: {name} is not of the form hf://OWNER/NAME[@REVISION][/PATH] ({one_line(error)}): correct the name'
        ) from None
    path = uri.path_in_repo.rstrip('/')
    wanted = [path] if any(fnmatch(path, each) for each in patterns) else [f'{path}/{each}' for each in patterns]
    wanted = [each.removeprefix('/') for each in wanted]
    try:
        root = Path(snapshot_download(uri.id, repo_type=kind, revision=uri.revision, allow_patterns=wanted))
    except GatedRepoError:
        raise UserError(
            f'{flag}: {name} is gated: request access on its page, then log in with `hf auth login`'
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f'{flag}: the hub has no public {kind} {uri.id}: correct the name (a private {kind} needs `hf auth login` '
            'or HF_TOKEN)'
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f'{flag}: {uri.id} has no revision {uri.revision}: use an existing branch, tag or commit'
        ) from None
    except (OSError, HTTPError) as error:
        raise UserError(
            f'{flag}: {name} cannot be downloaded ({one_line(error)}): run again when the hub can be reached'
        ) from None
    below = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob('*')) if file.is_file()}
    files = [file for relative, file in below.items() if any(fnmatch(relative, each) for each in wanted)]
    if not files:
        raise UserError(f'{flag}: {name} has no file that matches {", ".join(wanted)}: correct the path')
    return Snapshot(f'hf://{uri.id}@{root.name}', root / path, tuple(files))
