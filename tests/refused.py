"""Programs that refuse to run, as a user sees them."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from absl import flags as absl_flags
from ml_collections import config_flags

from rlhi_jax.cli import program


def one_refusal(status: int, out: str, err: str) -> str:
    """The one line of a refusal, after checking that there is nothing else."""
    assert status == 2, (status, err[-3000:])
    assert err.startswith('error: ') and err.endswith('\n') and err.count('\n') == 1, err
    assert 'Traceback' not in err and not out
    assert len(err) < 600, 'too long to read'
    return err


def words(message: str, *expected: str) -> None:
    missing = [word for word in expected if word not in message]
    assert not missing, (missing, message)


def run_here(
    monkeypatch, capfd, argv: list[str], main: Callable[[], None], *modules, **options
) -> tuple[int, str, str]:
    """Run a program in this process: its exit status, standard output and standard error.

    absl has one set of flags for the whole process and keeps overrides in it, so each run gets a set of its own, in
    `program` and in the other modules named.
    """
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file('config', None, flag_values=values)
    absl_flags.DEFINE_string('workdir', None, '', flag_values=values)
    for module in (program, *modules):
        monkeypatch.setattr(module, 'flags', SimpleNamespace(FLAGS=values, Error=absl_flags.Error))
    monkeypatch.setattr(sys, 'argv', argv)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        command = program.start(**options)
        program.run(lambda: main(*filter(None, [command])))
        sys.exit(0)
    return ended.value.code, *capfd.readouterr()
