"""Makes pseudonymous user ids (user keys) and their salt, and reads and writes the opt-out list.

A user key is a salted hash of an IP address (WildChat's `hashed_ip`) and the browser's header. Keys made from logs have
limits: people who share an IP address and use the same browser count as one user, and a person whose IP address or
browser changes counts as a new user. So a persona may contain other people's preferences, and a user's history may be
incomplete.
"""

import contextlib
import io
import json
import os
import secrets
import uuid
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_file

SALT_BYTES = 32


def make_salt(path: str, *, outside: Path) -> None:
    """Write a random salt to a file, unless the file exists.

    Anyone who knows the salt and a user's IP address can find the user's texts, so the salt must not be stored with
    the data.

    Args:
      path: the path of the salt file.
      outside: the data folder, which must not contain the salt file.

    Raises:
      UserError: the salt file is in the folder `outside`.
    """
    file = Path(path).expanduser().resolve()
    if file.is_relative_to(outside.resolve()):
        raise UserError(f'config.ingest.salt: {file} is in the data folder {outside}: store the salt elsewhere')
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_name(f'.{file.name}.{uuid.uuid4().hex}.tmp')
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as new:
            new.write(secrets.token_hex(SALT_BYTES).encode())
        with contextlib.suppress(FileExistsError):  # another run has just written its salt
            os.link(whole, file)
        whole.unlink()


def read_salt(path: str) -> bytes:
    """Return the salt in a file, or b'' for an empty path.

    Raises:
      UserError: the file cannot be read, or does not contain a salt.
    """
    if not path:
        return b''
    file = Path(path).expanduser()
    try:
        salt = bytes.fromhex(file.read_text())
    except (OSError, ValueError):
        salt = b''
    if len(salt) != SALT_BYTES:
        raise UserError(
            f'config.ingest.salt: {file} does not contain {SALT_BYTES} bytes in hex: restore the file from a backup'
        )
    return salt


def read_opt_out(path: str) -> frozenset[str]:
    """Read the ids of opted-out users from a text file with one id per line; an empty path gives an empty set.

    Raises:
      UserError: the file does not exist or is not text.
    """
    if not path:
        return frozenset()
    try:
        return _ids(Path(path).expanduser().read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'config.ingest.opt_out: {path} cannot be read ({error}): set the key to a text file with one user id '
            'per line'
        ) from None


def _ids(lines: bytes) -> frozenset[str]:
    text = io.StringIO(lines.decode('utf-8-sig'), newline=None)
    return frozenset(filter(None, map(str.strip, text)))


def opt_out_with(path: str, users: Iterable[str]) -> frozenset[str]:
    """Return `users` together with the users on the opt-out list. The file with the list need not exist yet.

    Raises:
      UserError: the list cannot be read, or an id cannot be stored on one line.
    """
    for user in users:
        if _ids(_as_list([user])) != {user}:
            raise UserError(
                f'--user={user!r} cannot be stored in config.ingest.opt_out: pass the id without line breaks '
                'or surrounding spaces'
            )
    return frozenset(users) | (read_opt_out(path) if Path(path).expanduser().exists() else frozenset())


def write_opt_out(path: str, users: Iterable[str]) -> None:
    """Write the opt-out list to a file that only its owner can read.

    Raises:
      UserError: the file cannot be written.
    """
    file = Path(path).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file, private=True) as new:
            new.write(_as_list(users))
    except OSError as error:
        raise UserError(
            f'config.ingest.opt_out: {path} cannot be written ({error.strerror}): set the key to a file that you '
            'can write'
        ) from None


def _as_list(users: Iterable[str]) -> bytes:
    return ''.join(f'{user}\n' for user in sorted(users)).encode('utf-8', 'replace')


def user_key(name: str, header: Any, salt: bytes) -> str:
    """Return a user's key, which is a salted hash of the name and the header.

    If the salt is empty, the key is the name itself. If the name is empty, the key is ''.

    Args:
      name: the user's id or IP address.
      header: the browser's header from a raw record; None if the record has no header.

    >>> user_key('u7', None, b''), len(user_key('u7', dict(agent='x'), b'salt'))
    ('u7', 32)
    """
    if not name or not salt:
        return name
    if isinstance(header, dict):
        header = {key: value for key, value in header.items() if value is not None}
    identity = json.dumps([name, header], sort_keys=True, default=str)
    return blake2b(identity.encode('utf-8', 'replace'), key=salt, digest_size=16).hexdigest()
