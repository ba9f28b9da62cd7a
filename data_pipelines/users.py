"""Who speaks: a key for the person behind a conversation, of what a public log says of them, and salted.

The key is of an address (WildChat's `hashed_ip`) and of the browser's header. It has limits that no key of a log is
without: people behind one address with the same browser are one user, and somebody whose address or browser changes
becomes another. So a persona may hold what others said, and a history may be cut.
"""

import contextlib
import json
import os
import secrets
import uuid
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rlhi_jax.errors import UserError
from rlhi_jax.files import write_bytes

SALT_BYTES = 32


def make_salt(path: str, *, outside: Path) -> None:
    """Write a random salt to a file, unless it is there already.

    Whoever has the salt and an address can find its user, so it is not kept with what users said.

    Raises:
      UserError: the file is inside a folder that it must be outside of.
    """
    file = Path(path).expanduser().resolve()
    if file.is_relative_to(outside.resolve()):
        raise UserError(f'config.ingest.salt: {file} lies with the data of {outside}: keep it elsewhere')
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_name(f'.{file.name}.{uuid.uuid4().hex}.tmp')
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as new:
            new.write(secrets.token_hex(SALT_BYTES).encode())
        with contextlib.suppress(FileExistsError):  # the salt of another run that began at the same time
            os.link(whole, file)
        whole.unlink()


def read_salt(path: str) -> bytes:
    """The salt of a file; b'' for no path.

    Raises:
      UserError: the file holds something else.
    """
    if not path:
        return b''
    file = Path(path).expanduser()
    try:
        salt = bytes.fromhex(file.read_text())
    except (OSError, ValueError):
        salt = b''
    if len(salt) != SALT_BYTES:
        raise UserError(f'config.ingest.salt: {file} holds no salt of {SALT_BYTES} bytes in hex: name a new file')
    return salt


def read_opt_out(path: str) -> frozenset[str]:
    """The ids of users whose conversations are not to be kept, one a line of a text file; none for no path.

    Raises:
      UserError: there is no such file, or it is no text.
    """
    if not path:
        return frozenset()
    try:
        lines = Path(path).expanduser().read_text(encoding='utf-8-sig').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'config.ingest.opt_out: {path} cannot be read ({error}): name a text file of user ids, one a line'
        ) from None
    return frozenset(filter(None, map(str.strip, lines)))


def add_opt_out(path: str, users: Iterable[str]) -> None:
    """Put users on the list that `read_opt_out` reads, which is begun if it is not there."""
    file = Path(path).expanduser()
    listed = read_opt_out(path) if file.exists() else frozenset()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, '\n'.join(sorted({*listed, *users}) + ['']).encode())
    file.chmod(0o600)


def user_key(name: str, header: Any, salt: bytes) -> str:
    """The key of a user by name (an id or address) and header; the name itself without a salt, '' without a name.

    >>> user_key('u7', None, b''), len(user_key('u7', dict(agent='x'), b'salt'))
    ('u7', 32)
    """
    if not name or not salt:
        return name
    said = {key: value for key, value in header.items() if value is not None} if isinstance(header, dict) else header
    told = json.dumps([name, said], sort_keys=True, default=str)
    return blake2b(told.encode('utf-8', 'replace'), key=salt, digest_size=16).hexdigest()
