"""Writes files and folders that are never left half-written, reads JSON files, and computes digests."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rlhi_jax.io.errors import UserError


def digest(*parts: Any) -> str:
    """Return a single sha256 digest of all parts (bytes or JSON values), as 64 hex digits.

    The length of each part is hashed before the part itself.
    """
    sha = hashlib.sha256()
    for part in parts:
        data = (
            part
            if isinstance(part, bytes | memoryview)
            else json.dumps(part, sort_keys=True, ensure_ascii=True).encode()
        )
        sha.update(memoryview(data).nbytes.to_bytes(8, 'little'))
        sha.update(data)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 digest of a file as 64 hex digits; the file is read in blocks."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


@contextmanager
def new_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file with a temporary name; if the `with` block succeeds, sync the file to disk and rename it to `path`.

    The folder that contains `path` must exist: if someone removes a running stage's folder, the stage must fail instead
    of recreating it.

    Args:
      path: the file to write.
      private: whether only the file's owner may read the file.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a file, completely or not at all."""
    with new_file(path) as file:
        file.write(data)


def complete_lines(path: Path) -> list[bytes]:
    """Return a file's complete lines, without the partial line that a killed run may leave at the end."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b'\n')]


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write a value to a JSON file, completely or not at all; with `private`, only the owner may read the file."""
    with new_file(path, private=private) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + '\n').encode())


def read_json(path: Path, remedy: str, *, fields: Sequence[str] | None = None) -> Any:
    """Return the value in a JSON file; with `fields`, the value must be an object with at least these fields.

    Raises:
      UserError: the file is missing, is not JSON or lacks a field; the message ends with `remedy`.
    """
    try:
        value = json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path} does not exist: {remedy}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}): {remedy}') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not valid JSON ({error}): {remedy}') from None
    if fields is not None and not isinstance(value, dict):
        raise UserError(f'{path} does not contain a JSON object: {remedy}')
    for field in fields or ():
        if field not in value:
            raise UserError(f'{path} has no field {field!r}: {remedy}')
    return value


class HeldFolder:
    """A context manager that creates a temporary folder beside `path` and locks it.

    The temporary folder is empty at first. It is removed when the `with` block ends, unless `put_in_place` moved it.

    Attributes:
      path: the path of the finished folder, with symbolic links resolved.
      folder: the temporary folder.

    Raises:
      UserError: another process is writing to the temporary folder.
    """

    def __init__(self, path: Path):
        self.path = Path(path).resolve()
        self.folder = self.path.with_name(f'.{self.path.name}.tmp')

    def __enter__(self) -> 'HeldFolder':
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.folder)
        for leftover in self.folder.iterdir():  # left by a killed process
            remove(leftover)
        return self

    def __exit__(self, *exception) -> None:
        if _leads_to(self.folder, self._lock):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def put_in_place(self) -> None:
        """Move the temporary folder to `path`, replacing any folder there.

        Raises:
          UserError: someone removed or replaced the temporary folder while this process was writing it.
        """
        if not _leads_to(self.folder, self._lock):
            raise UserError(f'{self.folder} was removed or replaced while this run was writing it: rerun the command')
        if self.path.exists():
            self.path.replace(_replaced(self.path))
        self.folder.replace(self.path)
        settle(self.path)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is moved to `path` if the `with` block ends without an error.

    Raises:
      UserError: another process is writing to the folder; `path` exists and `overwrite` is false; or `path` exists and
        is not a folder that this function made.
    """
    with HeldFolder(path) as held:
        settle(held.path)
        ours = any((held.path / name).exists() for name in ('manifest.json', 'model.json', 'config.json'))
        if held.path.exists() and (not ours or (held.path / 'checkpoints').exists()):
            raise UserError(f'{path} was not created by this program and will not be overwritten: use another folder')
        if held.path.exists() and not overwrite:
            raise UserError(f'{path} already exists: pass --overwrite to replace it')
        yield held.folder
        held.put_in_place()


def settle(path: Path) -> None:
    """Finish replacing the folder at `path` if a process was killed while replacing it.

    The new folder is kept if it exists; otherwise, the old one is kept.
    """
    path = path.resolve()
    if (old := _replaced(path)).exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.replace(path)


def settle_if_free(path: Path) -> None:
    """Call `settle`, unless another process is writing to the folder."""
    if _replaced(Path(path).resolve()).exists():
        with suppress(UserError), HeldFolder(path) as held:
            settle(held.path)


def _replaced(path: Path) -> Path:
    return path.with_name(f'.{path.name}.old')


def remove(path: Path) -> None:
    """Remove a file, a symbolic link, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def discard(folder: Path) -> None:
    """Remove a folder if it exists. It is renamed first, so that a killed process leaves no half-removed folder."""
    removed = folder.with_name(f'.{folder.name}.removed')
    if removed.exists():
        shutil.rmtree(removed)
    if folder.exists():
        folder.replace(removed)
        shutil.rmtree(removed)


def locked(folder: Path) -> int:
    """Lock a folder and return its open file descriptor.

    The folder is unlocked when the descriptor is closed or this process ends.

    Raises:
      UserError: another process has locked the folder.
    """
    opened = os.open(folder, os.O_RDONLY)
    free = True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        free = False
    except OSError:
        pass  # some network file systems have no locks
    if not free or not _leads_to(folder, opened):  # the last owner may just have moved the folder into place
        os.close(opened)
        raise UserError(f'{folder} is being written by another run: wait for that run to end')
    return opened


def _leads_to(path: Path, opened: int) -> bool:
    """Return whether a path refers to the folder behind an open file descriptor."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(opened))
