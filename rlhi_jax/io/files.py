"""Files that are never half-written, and digests of what they hold."""

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
    """The sha256 of bytes, or of anything JSON can write, as 64 hex digits; parts are length-delimited."""
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
    """The sha256 of a file's bytes, read in blocks."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


@contextmanager
def new_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file under a temporary name; when the block ends without an error it is synced and renamed to `path`.

    Its folder is not made: that of a stage at work may have been taken away, which must not pass unnoticed.

    Args:
      private: its owner alone can read it.
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
    """Write a whole file, or nothing."""
    with new_file(path) as file:
        file.write(data)


def complete_lines(path: Path) -> list[bytes]:
    """Lines of a file that end in a newline: a killed run may leave half a line at the end."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b'\n')]


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write a whole JSON file, or nothing; with `private`, one that its owner alone can read."""
    with new_file(path, private=private) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + '\n').encode())


def read_json(path: Path, remedy: str, *, fields: Sequence[str] | None = None) -> Any:
    """Read a JSON file; with `fields`, an object that has at least these.

    Raises:
      UserError: the file is missing, is not JSON or lacks a field; the message ends in `remedy`.
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
        raise UserError(f'{path} holds no JSON object: {remedy}')
    for field in fields or ():
        if field not in value:
            raise UserError(f'{path} has no field {field!r}: {remedy}')
    return value


class HeldFolder:
    """A temporary folder beside `path`: empty, and of no other process, until the block ends and it is removed.

    Attributes:
      path: where the folder is to lie, or what a link there leads to.
      folder: the temporary one.

    Raises:
      UserError: another process is writing it.
    """

    def __init__(self, path: Path):
        self.path = Path(path).resolve()
        self.folder = self.path.with_name(f'.{self.path.name}.tmp')

    def __enter__(self) -> 'HeldFolder':
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.folder)
        for left in self.folder.iterdir():  # by a process that was killed
            remove(left)
        return self

    def __exit__(self, *exception) -> None:
        if _leads_to(self.folder, self._lock):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def put_in_place(self) -> None:
        """Let it become `path`, instead of what is there.

        Raises:
          UserError: it is no longer the folder that this process has written.
        """
        if not _leads_to(self.folder, self._lock):
            raise UserError(f'{self.folder} was removed or replaced as it was being written: run again')
        if self.path.exists():
            self.path.replace(_replaced(self.path))
        self.folder.replace(self.path)
        settle(self.path)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises:
      UserError: `path` exists already and `overwrite` is false, it is no folder that such a block has written, or
        another process is writing it.
    """
    with HeldFolder(path) as held:
        settle(held.path)
        if held.path.exists() and not overwrite:
            raise UserError(f'{path} exists already: name another folder, remove it, or pass --overwrite')
        ours = any((held.path / name).exists() for name in ('manifest.json', 'model.json', 'config.json'))
        if held.path.exists() and (not ours or (held.path / 'checkpoints').exists()):
            raise UserError(f'{path} is not replaced, for it was not written by this program: name another folder')
        yield held.folder
        held.put_in_place()


def settle(path: Path) -> None:
    """End what a process that was killed as it replaced a folder has begun: there is the new folder, or the old one."""
    path = path.resolve()
    if (old := _replaced(path)).exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.replace(path)


def settle_if_free(path: Path) -> None:
    """As `settle`, unless another process is writing the folder."""
    if _replaced(Path(path).resolve()).exists():
        with suppress(UserError), HeldFolder(path) as held:
            settle(held.path)


def _replaced(path: Path) -> Path:
    return path.with_name(f'.{path.name}.old')


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def locked(folder: Path) -> int:
    """A descriptor of a folder, which no other process gets until it is closed or this process has ended."""
    opened = os.open(folder, os.O_RDONLY)
    free = True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        free = False
    except OSError:
        pass  # some network file systems have no locks
    if not free or not _leads_to(folder, opened):  # whoever had it may just have put it in place
        os.close(opened)
        raise UserError(f'{folder} is being written by another run: let it end, or stop it, then run again')
    return opened


def _leads_to(path: Path, opened: int) -> bool:
    """Whether a path leads to the folder that a descriptor is of."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(opened))
