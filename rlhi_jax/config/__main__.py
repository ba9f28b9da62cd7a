"""Prints the configuration's keys, each with its default, allowed values and meaning.

python -m rlhi_jax.config                  every section and key
python -m rlhi_jax.config ingest dpo.beta  only these sections and keys
"""

import signal
import sys
import textwrap

from rlhi_jax.config.keys import Entry, Key
from rlhi_jax.config.schema import reference


def as_text(entry: Entry) -> str:
    """Format a key or section as lines of text."""
    name, part = entry
    if not isinstance(part, Key):
        return f'\n[{name}]\n' + textwrap.fill(part.meaning, 100)
    bound = f', {part.bound}' if part.bound else ''
    head = f'{name} = {part.default!r}  ({type(part.default).__name__}{bound})'
    return head + '\n' + textwrap.fill(part.meaning, 100, initial_indent='    ', subsequent_indent='    ')


def main(names: list[str]) -> None:
    wanted = [name.removeprefix('config.') for name in names]
    known = reference()
    if unknown := [name for name in wanted if name not in {entry.name for entry in known}]:
        print(
            f'error: {unknown[0]} is not a key or section: run `python -m rlhi_jax.config` to list all', file=sys.stderr
        )
        sys.exit(2)
    for entry in known:
        if not wanted or any(f'{entry.name}.'.startswith(f'{name}.') for name in wanted):
            print(as_text(entry))


if __name__ == '__main__':
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback after `| head`
    main(sys.argv[1:])
