"""What every program does before and around its main: flags, config files, exit status."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
import tiny
from absl import flags as absl_flags
from refused import one_refusal, run_here, words

from rlhi_jax.cli import program
from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError

CONFIG_HEAD = f'import sys\nsys.path.insert(0, {str(tiny.ROOT / "tests")!r})\nimport tiny_config\n'


@pytest.fixture
def refusal(monkeypatch, capfd):
    """Runs a program that only loads its config, and returns the refusal."""

    def run(*argv: str, **options) -> str:
        def main(*command: str):
            program.load_config(program.flags.FLAGS.config)

        return one_refusal(*run_here(monkeypatch, capfd, ['program', *argv], main, **options))

    return run


FLAGS = {
    'unknown key': (['--config.trian.epochs=1'], 'trian', 'python -m rlhi_jax.config'),
    'unknown key in a section': (['--config.train.epcohs=1'], 'epcohs', 'python -m rlhi_jax.config'),
    'misspelt key': (['--config.dpo.betaa=1'], '--config.dpo.betaa=1: Key "betaa" does not exist', 'mean "beta"'),
    'renamed key': (['--config.pairs.margin=1'], 'config.pairs.margin is now config.pairs.min_score_gap'),
    'renamed key of a subsection': (['--config.simulated.users.gate=1'], 'is now config.simulated.users.validation'),
    'removed key': (['--config.mesh.context=1'], 'config.mesh.context was removed'),
    'wrong type': (['--config.train.epochs=abc'], 'train.epochs', 'abc'),
    'not whole': (['--config.train.epochs=1.5'], 'train.epochs', '1.5'),
    'value out of bounds': (['--config.train.batch_rows=0'], 'config.train.batch_rows is 0', 'at least 1'),
    'not a number': (['--config.optimizer.learning_rate=nan'], 'config.optimizer.learning_rate is nan', 'at least 0'),
    'unknown flag': (['--learning_rate=1'], 'learning_rate', '--config'),
    'positional': (['smoke'], "'smoke'", '--flag=value'),
}


@pytest.mark.parametrize('case', FLAGS)
def test_flags(case, refusal):
    flags, *expected = FLAGS[case]
    words(refusal(f'--config={tiny.CONFIG}', *flags), *expected)


CONFIGS = {
    'unknown key': ('c.trian = 1', 'trian', 'c.py, line 8'),
    'unknown key in a section': ('c.train.epcohs = 1', 'epcohs'),
    'unlocked key': ('c.unlock(); c.trian = 1', 'config.trian', 'remove or rename it'),
    'renamed key': ('c.rewrites.margin = 1', 'config.rewrites.margin is now config.rewrites.max_feedback_drop'),
    'renamed key, unlocked': ('c.simulated.unlock(); c.simulated.pairs = "a"', 'is now config.simulated.tastes'),
    'key taken away': ('c.unlock(); del c.train.epochs', 'config.train.epochs is missing', 'base_config'),
    'section replaced': ('c.unlock(); del c.train; c.train = 3', 'config.train', 'section'),
    'text for a number': ("c.train.epochs = 'x'", 'epochs', 'int', 'c.py, line 8'),
    'fraction for a whole number': ('c.train.epochs = 1.5', 'epochs', 'int'),
    'text for a switch': ("c.policy_sees_persona = 'no'", 'policy_sees_persona', 'bool'),
    'value': ("c.objective = 'ppo'", 'config.objective', 'dpo'),
    'name error': ('c.train.epochs = ten', "'ten'", 'c.py, line 8'),
    'error': ('1 / 0', 'division by zero', 'c.py, line 8'),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_config_files(case, tmp_path, refusal):
    body, *expected = CONFIGS[case]
    path = tmp_path / 'c.py'
    path.write_text(f'{CONFIG_HEAD}\n\ndef get_config():\n  c = tiny_config.get_config()\n  {body}\n  return c\n')
    words(refusal(f'--config={path}'), *expected)


def test_config_files_that_give_no_config(tmp_path, refusal):
    words(refusal(f'--config={tmp_path / "nowhere.py"}'), 'nowhere.py', '--config')
    words(refusal(f'--config={tiny.ROOT / "configs" / "mt_bench.py"}:ppo'), "'ppo' is unknown", 'reward,smoke')
    broken = {
        'invalid': ('def get_config(:\n', 'invalid.py, line 1', 'invalid syntax'),
        'nothing': ('def get_config():\n  return None\n', '--config', 'get_config()'),
        'dictionary': ('def get_config():\n  return {}\n', '--config', 'get_config()'),
    }
    for name, (source, *expected) in broken.items():
        path = tmp_path / f'{name}.py'
        path.write_text(source)
        words(refusal(f'--config={path}'), *expected)
    words(refusal(), '--config')


def test_commands(refusal):
    for argv in ([], ['delete']):
        words(refusal(*argv, commands=('import', 'export')), 'is not a command: choose one of import, export')
    words(refusal('import', 'more', commands=('import', 'export')), "unexpected argument 'more'")


ROOT_PROGRAMS = [path for folder in ('rlhi_jax', 'data_pipelines') for path in (tiny.ROOT / folder).glob('[a-z]*.py')]


@pytest.mark.parametrize('path', ROOT_PROGRAMS, ids=lambda path: f'{path.parent.name}.{path.stem}')
def test_help_and_typos_are_answered_before_jax_is_imported(path):
    name = f'{path.parent.name}.{path.stem}'
    code = f"""
import runpy, sys
sys.argv = ['program', {{!r}}]
try:
    runpy.run_module({name!r}, run_name='__main__', alter_sys=True)
except SystemExit as ended:
    print('status', ended.code)
assert not {{{{'jax', 'grain', 'pyarrow'}}}} & sys.modules.keys()
"""

    def answer(flag: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, '-c', code.format(flag)], cwd=tiny.ROOT, capture_output=True, text=True, check=True
        )

    helped, typo = answer('--help'), answer('--nonsense=1')
    flag = '--config' if name != 'rlhi_jax.convert' else '--source'
    assert f'  {flag}: ' in helped.stdout and f'python -m {name}' in helped.stdout and 'status 0' in helped.stdout
    assert typo.stderr.startswith("error: Unknown command line flag 'nonsense'") and 'status 2' in typo.stdout


def test_packages_list_their_programs():
    for folder in ('rlhi_jax', 'data_pipelines'):
        listed = subprocess.run(
            [sys.executable, '-m', folder], cwd=tiny.ROOT, capture_output=True, text=True, check=True
        ).stdout
        names = {path.stem for path in ROOT_PROGRAMS if path.parent.name == folder}
        assert names == {line.split()[0] for line in listed.splitlines()[2:]}


def test_exit_status(monkeypatch, capfd):
    def interrupted():
        raise KeyboardInterrupt

    def refused():
        raise UserError('the file\nis damaged: remove it')

    status, _, err = run_here(monkeypatch, capfd, ['program', f'--config={tiny.CONFIG}'], interrupted)
    assert status == 130 and err == 'stopped: finished work is kept; run the same command to resume\n'
    expected = (2, '', 'error: the file is damaged: remove it\n')
    assert run_here(monkeypatch, capfd, ['program', f'--config={tiny.CONFIG}'], refused) == expected


def test_flags_that_are_not_given(monkeypatch):
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string('prompts', 'p.jsonl', 'Prompts as JSON lines.', flag_values=values)
    absl_flags.DEFINE_string('to', None, 'Folder to write.', flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(program, 'flags', SimpleNamespace(FLAGS=values))
    program.require_flags('prompts')
    with pytest.raises(UserError, match=r'^--to is missing: pass --to=\.\.\. \(Folder to write\)$'):
        program.require_flags('prompts', 'to')


def test_workdirs(tmp_path):
    assert program.workdir_path(str(tmp_path)) == tmp_path
    for workdir, expected in {
        '': '--workdir is missing',
        'gs://bucket/run': '--workdir=gs://bucket/run is a URL',
    }.items():
        with pytest.raises(UserError, match=expected):
            program.workdir_path(workdir)


@pytest.mark.parametrize(('folder', 'set_before', 'expected'), [('c', None, 'c'), ('c', 'd', 'd'), ('', None, None)])
def test_the_compilation_cache(folder, set_before, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    config = base_config()
    config.compilation_cache = folder
    try:
        jax.config.update('jax_compilation_cache_dir', set_before and str(tmp_path / set_before))
        program.load_config(config)
        assert jax.config.jax_compilation_cache_dir == (expected and str(tmp_path / expected))
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
