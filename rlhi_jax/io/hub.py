"""Repositories of the Hugging Face hub, `hf://OWNER/NAME[@REVISION][/PATH]` → files of one commit in its cache.

PATH is a folder of the repository, or a pattern of its files such as data/train-*.parquet. Without a REVISION the
newest commit is taken. What was fetched is kept: an interrupted download goes on, and without a network the cache is
read, if all is there.
`HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_ENDPOINT` mean what they mean to huggingface_hub, which does the work.
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
    """Part of a repository.

    Attributes:
      name: hf://OWNER/NAME@COMMIT, whatever revision was asked for.
      folder: where it lies, or the folder of it that was asked for.
      files: the files that were asked for, in the order of their paths.
    """

    name: str
    folder: Path
    files: Sequence[Path]


def on_hub(name: str) -> bool:
    return name.startswith('hf://')


@functools.cache  # all of a run sees one commit, whatever is pushed meanwhile
def snapshot(name: str, kind: Literal['dataset', 'model'], patterns: Sequence[str], flag: str) -> Snapshot:
    """Fetch the files of a repository that match one of the patterns, unless they are there.

    Args:
      name: hf://OWNER/NAME[@REVISION][/PATH]; that of a data set may begin with hf://datasets/, as the hub shows it.
      kind: of repository.
      patterns: of names of files, in any folder or, if the name ends in a path, below it.
      flag: that gave the name.

    Raises:
      UserError: there is no such repository, revision or file, or none that may be read; or the network is gone.
    """
    try:
        uri = parse_hf_uri(f'hf://{kind}s/' + name.removeprefix('hf://').removeprefix(f'{kind}s/'))
    except HfUriError as error:
        raise UserError(f'{flag}: {name} is not hf://OWNER/NAME[@REVISION][/PATH] ({one_line(error)})') from None
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
            f'{flag}: the hub shows no {kind} {uri.id}: mend its name or, if it is private, log in with `hf auth '
            'login` or set HF_TOKEN'
        ) from None
    except RevisionNotFoundError:
        raise UserError(f'{flag}: {uri.id} has no revision {uri.revision}: name a branch, a tag or a commit') from None
    except (OSError, HTTPError) as error:
        raise UserError(
            f'{flag}: {name} cannot be fetched ({one_line(error)}): run again when the hub can be reached, which goes '
            'on with what is there, or name a local folder'
        ) from None
    below = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob('*')) if file.is_file()}
    files = [file for place, file in below.items() if any(fnmatch(place, each) for each in wanted)]
    if not files:
        raise UserError(f'{flag}: {name} holds no file {", ".join(wanted)}')
    return Snapshot(f'hf://{uri.id}@{root.name}', root / path, tuple(files))
