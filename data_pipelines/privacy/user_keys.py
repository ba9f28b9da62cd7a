"""Keys of users, and the list of those who have opted out.

The key is of an address (WildChat's `hashed_ip`) and of the browser's header. It has limits that no key of a log is
without: people behind one address with the same browser are one user, and somebody whose address or browser changes
becomes another. So a persona may hold what others said, and a history may be cut.
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
from rlhi_jax.io.files import write_bytes

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
        return _ids(Path(path).expanduser().read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'config.ingest.opt_out: {path} cannot be read ({error}): name a text file of user ids, one a line'
        ) from None


def _ids(lines: bytes) -> frozenset[str]:
    text = io.StringIO(lines.decode('utf-8-sig'), newline=None)
    return frozenset(filter(None, map(str.strip, text)))


def opt_out_with(path: str, users: Iterable[str]) -> frozenset[str]:
    """Those on the list that `read_opt_out` reads, if it has been begun, and these users.

    Raises:
      UserError: the list cannot be read, or could not hold one of the users.
    """
    for user in users:
        if _ids(_as_list([user])) != {user}:
            raise UserError(
                f'--user={user!r}: config.ingest.opt_out, a list of ids one a line, cannot hold such an id: give it as '
                'records do, without blanks around it'
            )
    return frozenset(users) | (read_opt_out(path) if Path(path).expanduser().exists() else frozenset())


def write_opt_out(path: str, users: Iterable[str]) -> None:
    """Write the list that `read_opt_out` reads, for its owner's eyes."""
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, _as_list(users))
    file.chmod(0o600)


def _as_list(users: Iterable[str]) -> bytes:
    return ''.join(f'{user}\n' for user in sorted(users)).encode('utf-8', 'replace')


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
