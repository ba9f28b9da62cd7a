"""Files that are never half-written, and digests of what they hold."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rlhi_jax.errors import UserError


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
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file under a temporary name; when the block ends without an error it is synced and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
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


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + '\n').encode())


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


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises:
      UserError: `path` exists already and `overwrite` is false, it is no folder that such a block has written, or
        another process is writing it.
    """
    path = Path(path)
    settle(path)
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists already: name another folder, remove it, or pass --overwrite')
    ours = any((path / name).exists() for name in ('manifest.json', 'model.json', 'config.json'))
    if path.exists() and (not ours or (path / 'checkpoints').exists()):
        raise UserError(f'{path} is not replaced, for it was not written by this program: name another folder')
    temporary = path.with_name(f'.{path.name}.tmp')
    if temporary.exists():
        os.close(locked(temporary))
        shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    lock = locked(temporary)
    try:
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():
            path.replace(_replaced(path))
        temporary.replace(path)
        settle(path)
    finally:
        os.close(lock)


def settle(path: Path) -> None:
    """End what a process that was killed as it replaced a folder has begun: there is the new folder, or the old one."""
    if (old := _replaced(path)).exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.replace(path)


def _replaced(path: Path) -> Path:
    return path.with_name(f'.{path.name}.old')


def locked(folder: Path) -> int:
    """A descriptor of a folder, which no other process gets until it is closed or this process has ended."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise UserError(f'{folder} is being written by another run: let it end, or stop it, then run again') from None
    except OSError:
        pass  # some network file systems have no locks
    return opened
