"""Functions that all programs share: they parse flags, check the config, run `main` and set the exit status."""

import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from importlib.util import find_spec
from logging import CRITICAL, getLogger
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from rlhi_jax.config import check_config
from rlhi_jax.config.schema import renamed
from rlhi_jax.io.errors import UserError, fault_of_the_machine, one_line

_OF_LIBRARIES = frozenset(flags.FLAGS)  # flags that absl defines, which --help leaves out


def refuse(message: str) -> None:
    """Print an error message to standard error and exit with status 2."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    sys.exit(2)


@contextmanager
def refusing() -> Iterator[None]:
    """If the `with` block raises an error that is not a bug, print the error on one line and exit with status 2.

    These errors are UserErrors and faults of the machine, such as a full disk. Other errors pass through.
    """
    try:
        yield
    except UserError as error:
        refuse(one_line(error))
    except Exception as error:
        if fault := fault_of_the_machine(error):
            refuse(fault)
        raise


def require_flags(*names: str) -> None:
    """Check that these flags are given.

    Raises:
      UserError: a flag is missing; the message quotes the flag's help text.
    """
    for name in names:
        flag = flags.FLAGS[name]
        if not flag.value:
            raise UserError(f'--{name} is missing: pass --{name}=... ({flag.help.rstrip(".")})')


def _parse_flags(argv: Sequence[str]) -> list[str]:
    getLogger('asyncio').setLevel(CRITICAL)  # Orbax raises its tasks' errors itself; asyncio would print them too
    logging.set_verbosity(logging.WARNING)  # hide log messages of libraries; --verbosity=0 shows them
    try:
        left = flags.FLAGS(argv)
        if 'config' in flags.FLAGS:
            getattr(flags.FLAGS.config, 'lock', None)  # ml_collections reports a missing file on first access
        return left
    except Exception as error:  # config files are run while flags are parsed, and may raise anything
        refuse(
            f'{_flag_fault(error, argv)} (`python -m rlhi_jax.config` lists the keys; --config.KEY=VALUE sets a key)'
        )


def _flag_fault(error: Exception, argv: Sequence[str]) -> str:
    """Return a message that says what is wrong with a flag or config file.

    Tracebacks and lists of keys from ml_collections are left out.
    """
    text = one_line(error).replace("\\'", "'")  # the text of a KeyError is quoted twice
    where, line = _failing_line(error)
    if part := re.match(r"""\A["']+(\w+)["']+""", text):  # a --config.KEY flag for a key that does not exist
        line = next((flag for flag in argv if re.match(rf'--config\.([\w.]+\.)?{part[1]}\b', flag)), '--config')
        text = f'{line}: Key "{part[1]}" does not exist.{text[part.end() :]}'
    if 'Traceback (most recent call last)' in str(error):
        text = str(error).strip().splitlines()[-1]
    elif not isinstance(error, flags.Error | UserError | AttributeError | KeyError | OSError):
        text = f'{type(error).__name__}: {text}'
    if missing := re.search(r"No such file or directory: '([^']+)'", text):
        return f'--config={missing[1]} does not exist: use a config file such as configs/demo.py'
    text = re.sub(r' Other fields present: "\{.*\}"', '', text)
    unknown = re.search(r'Key "(\w+)" does not exist', text)
    news = renamed(line) or renamed(unknown[1]) if unknown else ''
    return where + text + (f' ({news})' if news else '')


def _failing_line(error: Exception) -> tuple[str, str]:
    """Return the place where a config file's `get_config` failed, as 'FILE, line N: ', and the text of that line.

    Both are '' if `get_config` did not fail.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == 'get_config']
    if frames and Path(frames[-1].filename).is_file():
        return f'{frames[-1].filename}, line {frames[-1].lineno}: ', frames[-1].line or ''
    # ml_collections wraps some errors in an error whose message contains the traceback.
    texts = re.findall(r'File "([^"]+)", line (\d+), in get_config\n\s*(.*)', str(error))
    return (f'{texts[-1][0]}, line {texts[-1][1]}: ', texts[-1][2]) if texts else ('', '')


def start(*, commands: Sequence[str] = (), required: bool = True) -> str:
    """Parse the command line, and return the chosen command.

    A program defines its flags and calls this function before its slow imports, so that it responds to --help and to
    wrong flags at once.

    Args:
      commands: the program's commands, such as 'import'. The first argument on the command line must be one of them.
      required: whether the command line must name a command. The result is '' if it does not, or if there are none.
    """
    if {'--help', '-help', '-h'} & set(sys.argv[1:]):
        print(_help(sys.modules['__main__'].__doc__ or '', sorted(set(flags.FLAGS) - _OF_LIBRARIES)))
        sys.exit(0)
    words = _parse_flags(sys.argv)[1:]
    if commands and not (words[0] in commands if words else not required):
        refuse(f'the first argument is not a command: choose one of {", ".join(commands)}')
    if extra := words[1:] if commands else words:
        refuse(f'unexpected argument {extra[0]!r}: pass every option as --flag=value')
    if 'config' in flags.FLAGS:
        with refusing():
            check_config(flags.FLAGS.config)
    return words[0] if commands and words else ''


def _help(docstring: str, names: Sequence[str]) -> str:
    """Return a program's docstring, followed by its flags with their defaults."""
    lines = [docstring.strip(), '', 'Flags:']
    for name in names:
        flag = flags.FLAGS[name]
        default = '' if flag.default in (None, '', False) else f' Default: {flag.default}.'
        lines.append(
            textwrap.fill(f'--{name}: {flag.help}{default}', 100, initial_indent='  ', subsequent_indent='      ')
        )
    if 'config' in names:
        lines.append('  --config.KEY=VALUE: sets a key; `python -m rlhi_jax.config` explains all keys.')
    return '\n'.join(lines)


def run(main: Callable[[], None]) -> None:
    """Run a program's `main()`, after `start` has parsed the flags.

    A UserError is printed as one line, and the exit status is 2. After Ctrl-C, the exit status is 130.
    """
    choose_platforms()
    try:
        with refusing():
            main()
    except KeyboardInterrupt:
        print('stopped: finished work is kept; run the same command to resume', file=sys.stderr, flush=True)
        sys.exit(130)


def choose_platforms() -> None:
    """Keep JAX from loading libtpu on a machine without a TPU, where libtpu would print an error trace."""
    if 'JAX_PLATFORMS' in os.environ or not find_spec('libtpu'):
        return
    if any(Path(vendor).read_text().strip() == '0x1ae0' for vendor in glob('/sys/bus/pci/devices/*/vendor')):  # Google
        return
    cuda = any(find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))
    os.environ['JAX_PLATFORMS'] = 'cuda,cpu' if cuda else 'cpu'  # child processes read this
    if 'jax' in sys.modules:
        sys.modules['jax'].config.update('jax_platforms', os.environ['JAX_PLATFORMS'])


def define_config_flag() -> None:
    """Define --config and its --config.KEY overrides, for every program that has a config."""
    config_flags.DEFINE_config_file(
        'config', None, 'Python file that defines get_config(), optionally followed by :VARIANT.'
    )


class _OptionalText(flags.Flag):
    """A flag with an optional value: None if the flag is not given, '' for --NAME, and 'TEXT' for --NAME=TEXT."""

    def __init__(self, name: str, meaning: str):
        super().__init__(flags.ArgumentParser(), flags.ArgumentSerializer(), name, None, meaning)
        self.boolean = True  # absl then takes --NAME without a value, and passes 'true'

    def _parse(self, argument: str) -> str:
        return '' if argument == 'true' else argument


def define_optional(name: str, meaning: str) -> None:
    """Define a flag with an optional value: None if it is not given, '' for --NAME, and 'TEXT' for --NAME=TEXT."""
    flags.DEFINE_flag(_OptionalText(name, meaning))


def define_flags() -> None:
    """Define the flags for programs that work on a run: --config with its overrides, and --workdir."""
    define_config_flag()
    flags.DEFINE_string('workdir', None, 'Folder for this run.')


def workdir_path(workdir: str | None) -> Path:
    """Return the run's folder as an absolute path.

    Raises:
      UserError: --workdir is missing or is a URL (a run appends to files, and object stores cannot append).
    """
    if not workdir:
        raise UserError('--workdir is missing: set it to a folder for this run')
    if '://' in workdir:
        raise UserError(f'--workdir={workdir} is a URL: use a folder that all hosts mount, such as a mounted bucket')
    return Path(workdir).absolute()


def load_config(config: ConfigDict) -> ConfigDict:
    """Check a program's config, set JAX's compilation cache to `config.compilation_cache`, and return the config.

    Raises:
      UserError: the config is not valid; the message names the key and its allowed values.
    """
    check_config(config)
    folder = config.compilation_cache
    import jax  # imported here because programs that only print an error do not need it

    if folder and not jax.config.jax_compilation_cache_dir:  # JAX's own environment variable takes precedence
        jax.config.update('jax_compilation_cache_dir', folder if '://' in folder else str(Path(folder).absolute()))
    return config
