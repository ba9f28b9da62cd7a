"""Failures that a user can mend, and the one way in which programs report them."""

import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file, field or flag at fault and what to do about it.
    """


class NothingToEvaluate(UserError):
    """What is held out cannot answer the question; what was trained is none the worse for it."""


def one_line(error: BaseException) -> str:
    """The message of an error folded onto one line.

    >>> one_line(KeyError('a\\n b'))
    'a b'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).replace('\\n', ' ').split())


def refuse(message: str) -> None:
    """Print the refusal to standard error and exit with status 2."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(2)


def require_flags(*names: str) -> None:
    """Raise UserError for a flag that the program needs and that is not given, with what its help text asks for."""
    for name in names:
        flag = flags.FLAGS[name]
        if not flag.value:
            raise UserError(f'--{name} is missing: pass --{name}=... ({flag.help.rstrip(".")})')


def _parse_flags(argv: Sequence[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)  # libraries' own progress; --verbosity=0 brings it back
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # config files run while flags are parsed, and may fail in any way
        refuse(f'{_flag_fault(error)} (see --config and its --config.* overrides; rlhi_jax/config.py lists every key)')


def _flag_fault(error: Exception) -> str:
    """What is wrong with a flag or a config file, without the tracebacks and listings that ml_collections adds."""
    known = isinstance(error, flags.Error | UserError | AttributeError | KeyError | OSError)
    where, text = '', one_line(error)
    if 'Traceback (most recent call last)' in str(error):
        frames = re.findall(r'File "([^"]+)", line (\d+), in get_config', str(error))
        where = ', line '.join(frames[-1]) + ': ' if frames else ''
        text = str(error).strip().splitlines()[-1]
    elif not known:
        text = f'{type(error).__name__}: {text}'
    return where + re.sub(r' Other fields present: "\{.*\}"', '', text)


def run(main: Callable[..., None], *, commands: Sequence[str] = ()) -> None:
    """Run a program: parse flags, call `main()`, and turn a UserError into one line and exit status 2, Ctrl-C into 130.

    With `commands`, the first argument must be one of them and is passed to `main`.
    """

    def guarded(argv: Sequence[str]) -> None:
        words = argv[1:]
        if commands and (not words or words[0] not in commands):
            refuse(f'the first argument must be one of: {", ".join(commands)}')
        extra = words[1:] if commands else words
        if extra:
            refuse(f'unexpected argument {extra[0]!r}: every option is a --flag=value')
        try:
            main(*words[:1])
        except UserError as error:
            refuse(one_line(error))
        except KeyboardInterrupt:
            print('stopped: what is done is kept, and the same command goes on from there', file=sys.stderr, flush=True)
            sys.exit(130)

    app.run(guarded, flags_parser=_parse_flags)
