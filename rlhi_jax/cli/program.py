"""How every program runs: flags → checked config → main → exit status."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rlhi_jax.config import base_config, check_config
from rlhi_jax.io.errors import UserError, one_line


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


def define_config_flag() -> None:
    """--config with its overrides, which every configured program has."""
    config_flags.DEFINE_config_file('config', None, 'Python file with get_config(), optionally :variant.')


def define_flags() -> None:
    """The flags of programs that work on a run: --config with overrides, and --workdir."""
    define_config_flag()
    flags.DEFINE_string('workdir', None, 'Folder of this run.')


def workdir_path(workdir: str | None) -> Path:
    """The run's folder as an absolute path.

    Raises:
      UserError: it is missing, or is a URL: metrics are appended to, which object stores cannot do.
    """
    if not workdir:
        raise UserError('--workdir is missing: name a folder for this run')
    if '://' in workdir:
        raise UserError(f'--workdir={workdir} is a URL: name a folder that all hosts share, such as a mounted bucket')
    return Path(workdir).absolute()


def load_config(config: ConfigDict) -> ConfigDict:
    """A program's --config, checked; from here on what is compiled is kept in its cache.

    Raises:
      UserError: naming the key and what it may be.
    """
    check_config(config, base_config())
    folder = config.compilation_cache
    import jax  # programs that only read a config start without it

    if folder and not jax.config.jax_compilation_cache_dir:  # JAX's own variable goes first
        jax.config.update('jax_compilation_cache_dir', folder if '://' in folder else str(Path(folder).absolute()))
    return config
