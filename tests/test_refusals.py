"""What cannot be run is refused at once: exit status 2, one line with the thing and the remedy, nothing written."""

import dataclasses
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from absl import flags as absl_flags
from ml_collections import config_flags

from rlhi_jax import train
from rlhi_jax.cli import program
from rlhi_jax.io import errors
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import RunCheckpoints, saved_steps
from rlhi_jax.models.parameters import check_fit
from rlhi_jax.scoring.reference import ReferenceCache

CONFIG_HEAD = f'import sys\nsys.path.insert(0, {str(tiny.ROOT / "tests")!r})\nimport tiny_config\n'


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    """A folder with a model, preferences, shards and rows that are in order."""
    folder = tmp_path_factory.mktemp('made')
    tiny.prepare(folder)
    return folder


@pytest.fixture(scope='module')
def rewards(made) -> Path:
    """A reward model beside them."""
    return tiny.write_model(made / 'reward model', spec=dataclasses.replace(tiny.SPEC, head='reward'))


def paths_in(folder: Path) -> list[str]:
    names = {'model.path': 'model', 'data.pairs': 'pairs.jsonl', 'data.shards': 'shards', 'data.rows': 'rows'}
    return [f'--config.{key}={folder / name}' for key, name in names.items()]


def one_refusal(status: int, out: str, err: str) -> str:
    assert status == 2, (status, err[-3000:])
    assert err.startswith('error: ') and err.endswith('\n') and err.count('\n') == 1, err
    assert 'Traceback' not in err and not out
    assert len(err) < 600, 'too long to read'
    return err


@pytest.fixture
def refusal(made, tmp_path, monkeypatch, capfd):
    """Runs the train program in this process and returns its refusal; flags come after those of a sound run."""

    def run(
        *flags: str,
        config: Path | None = tiny.CONFIG,
        workdir: Path | None = tmp_path / 'run',
        paths: bool = True,
        left: tuple[str, ...] = (),
    ) -> str:
        sound = [*([f'--config={config}'] if config else []), *([f'--workdir={workdir}'] if workdir else [])]
        monkeypatch.setattr(sys, 'argv', ['train', *sound, *(paths_in(made) if config and paths else []), *flags])
        # Flags of its own for each run: absl's are one set a process, and overrides stay in it.
        own = absl_flags.FlagValues()
        config_flags.DEFINE_config_file('config', None, flag_values=own)
        absl_flags.DEFINE_string('workdir', None, '', flag_values=own)
        for module in (errors, train):
            monkeypatch.setattr(module, 'flags', SimpleNamespace(FLAGS=own, Error=absl_flags.Error))
        monkeypatch.setattr(errors.app, 'run', lambda main, flags_parser: main(flags_parser(sys.argv)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            program.run(train.main)
        message = one_refusal(ended.value.code, *capfd.readouterr())
        written = sorted(path.name for path in workdir.iterdir()) if workdir and workdir.exists() else []
        assert written == sorted(left), 'something was written'
        return message

    return run


def words(message: str, *expected: str) -> None:
    missing = [word for word in expected if word not in message]
    assert not missing, (missing, message)


FLAGS = {
    'unknown key': (['--config.trian.epochs=1'], 'trian', 'config.py'),
    'unknown key in a section': (['--config.train.epcohs=1'], 'epcohs', 'config.py'),
    'wrong type': (['--config.train.epochs=abc'], 'train.epochs', 'abc'),
    'not whole': (['--config.train.epochs=1.5'], 'train.epochs', '1.5'),
    'unknown objective': (['--config.objective=ppo'], 'config.objective', "'ppo'", 'dpo'),
    'unknown dtype': (['--config.model.dtype=int8'], 'config.model.dtype', "'int8'", 'bfloat16'),
    'none of a batch': (['--config.train.batch_rows=0'], 'config.train.batch_rows', 'at least 1'),
    'no learning': (['--config.optimizer.learning_rate=nan'], 'config.optimizer.learning_rate', 'at least 0'),
    'negative cap': (['--config.ingest.max_nearly_same=-1'], 'config.ingest.max_nearly_same', 'at least 0'),
    'all held out': (['--config.ingest.heldout=1.0'], 'config.ingest.heldout is 1.0', 'below 1'),
    'nothing similar': (['--config.ingest.similarity=0.97'], 'config.ingest.similarity is 0.97', 'at most 0.96'),
    'everything similar': (['--config.ingest.similarity=0.0'], 'config.ingest.similarity is 0.0', 'above 0'),
    'fewer than no users': (['--config.simulated.users.gate=-1'], 'config.simulated.users.gate', 'at least 0'),
    'no round of training': (['--config.loop.dpo.epochs=0'], 'config.loop.dpo.epochs', 'at least 1'),
    'no options': (['--config.beam=nothing'], "config.beam is 'nothing'", '--runner=DirectRunner'),
    'a quote left open': (["--config.beam=--runner='x"], 'config.beam is', '--runner=DirectRunner'),
    'indivisible batch': (['--config.train.accumulate=3'], 'config.train.accumulate (3)', 'must divide'),
    'unknown flag': (['--learning_rate=1'], 'learning_rate', '--config'),
    'positional': (['smoke'], "'smoke'", '--flag=value'),
    'no model named': (['--config.model.path='], 'config.model.path', '--config.model.path=PATH'),
    'model is a URL': (['--config.model.path=http://host/v1'], 'config.model.path is a URL', 'config.teacher.path'),
    'reward model is a URL': (['--config.candidates.reward_model=gs://b/m'], 'config.candidates.reward_model is a URL'),
    'no rows named': (['--config.data.rows='], 'config.data.rows', '--config.data.rows=PATH'),
    'missing model': (['--config.model.path=/nowhere/m'], '/nowhere/m', 'rlhi_jax.convert import'),
    'missing shards': (['--config.data.shards=/nowhere/s'], '/nowhere/s', 'data_pipelines.shards'),
    'missing rows': (['--config.data.rows=/nowhere/r'], '/nowhere/r', 'data_pipelines.rows'),
    'model is a file': ([f'--config.model.path={tiny.CONFIG}'], 'tiny_config.py', 'rlhi_jax.convert import'),
    'shards are a file': ([f'--config.data.shards={tiny.CONFIG}'], 'tiny_config.py', 'data_pipelines.shards'),
    'shards are a model': (['--config.data.shards={made}/model'], 'model', 'data_pipelines.shards'),
    'rows are shards': (['--config.data.rows={made}/shards'], 'shards', 'data_pipelines.rows'),
    'shards are rows': (['--config.data.shards={made}/rows'], 'rows', 'data_pipelines.shards'),
    'odd chunk': (['--config.model.logprob_chunk=100'], 'logprob_chunk (100)', 'config.rows.scored (256)'),
    'no reward head': (['--config.objective=reward'], "'reward' head", 'config.model.new_head=True'),
    'new head on a policy': (['--config.model.new_head=True'], 'config.model.new_head', 'unset it'),
    'other capacities': (['--config.rows.tokens=1024'], 'other capacities', 'config.rows', 'data_pipelines.rows'),
    'mesh product': (['--config.mesh.data=3', '--config.mesh.fsdp=1'], 'config.mesh', 'devices'),
    'mesh of two free axes': (['--config.mesh.data=-1'], 'config.mesh', 'at most one may be -1'),
    'no mesh': (['--config.mesh.tensor=0'], 'config.mesh', 'at least 1'),
}


@pytest.mark.parametrize('case', FLAGS)
def test_flags(case, made, refusal):
    flags, *expected = FLAGS[case]
    words(refusal(*(flag.format(made=made) for flag in flags)), *expected)


CONFIGS = {
    'unknown key': ('c.trian = 1', 'trian'),
    'unknown key in a section': ('c.train.epcohs = 1', 'epcohs'),
    'unlocked key': ('c.unlock(); c.trian = 1', 'config.trian', 'mend its name'),
    'key taken away': ('c.unlock(); del c.train.epochs', 'config.train.epochs is missing', 'base_config'),
    'section replaced': ('c.unlock(); del c.train; c.train = 3', 'config.train', 'section'),
    'text for a number': ("c.train.epochs = 'x'", 'epochs', 'int'),
    'fraction for a whole number': ('c.train.epochs = 1.5', 'epochs', 'int'),
    'text for a switch': ("c.policy_sees_persona = 'no'", 'policy_sees_persona', 'bool'),
    'objective': ("c.objective = 'ppo'", 'config.objective', 'dpo'),
    'name error': ('c.train.epochs = ten', "'ten'", 'config'),
    'error': ('1 / 0', 'division by zero', 'config'),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_config_files(case, tmp_path, refusal):
    body, *expected = CONFIGS[case]
    path = tmp_path / 'c.py'
    path.write_text(f'{CONFIG_HEAD}\n\ndef get_config():\n  c = tiny_config.get_config()\n  {body}\n  return c\n')
    words(refusal(config=path), *expected)


def test_config_files_that_are_none(tmp_path, refusal):
    words(refusal(config=tmp_path / 'nowhere.py'), 'nowhere.py', '--config')
    broken = {
        'invalid': ('def get_config(:\n', 'invalid.py, line 1', 'invalid syntax'),
        'nothing': ('def get_config():\n  return None\n', '--config', 'get_config()'),
        'dictionary': ('def get_config():\n  return {}\n', '--config', 'get_config()'),
    }
    for name, (source, *expected) in broken.items():
        path = tmp_path / f'{name}.py'
        path.write_text(source)
        words(refusal(config=path, paths=False), *expected)
    words(refusal(config=None), '--config')


def test_flags_that_are_not_given(monkeypatch):
    own = absl_flags.FlagValues()
    absl_flags.DEFINE_string('prompts', 'p.jsonl', 'Prompts as JSON lines.', flag_values=own)
    absl_flags.DEFINE_string('to', None, 'Folder to write.', flag_values=own)
    own.mark_as_parsed()
    monkeypatch.setattr(errors, 'flags', SimpleNamespace(FLAGS=own))
    program.require_flags('prompts')
    with pytest.raises(UserError, match=r'^--to is missing: pass --to=\.\.\. \(Folder to write\)$'):
        program.require_flags('prompts', 'to')


def test_workdirs(made, tmp_path, refusal):
    words(refusal(workdir=None), '--workdir')
    (tmp_path / 'file').write_text('')
    words(refusal('--workdir=' + str(tmp_path / 'file')), str(tmp_path / 'file'), '--workdir')
    # An imported model's own folder would have its description overwritten.
    before = (made / 'model' / 'model.json').read_bytes()
    words(refusal(f'--workdir={made / "model"}'), str(made / 'model'), '--workdir')
    assert (made / 'model' / 'model.json').read_bytes() == before


def damaged(made: Path, tmp_path: Path, name: str, file: str, how: str) -> Path:
    """A copy of one of the folders, with one file of it flipped (one bit), truncated or missing."""
    copy = tmp_path / name
    shutil.copytree(made / name, copy)
    (path,) = copy.glob(file)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 1
    if how == 'missing':
        path.unlink()
    else:
        path.write_bytes(data if how == 'flipped' else data[:middle])
    return copy


@pytest.mark.parametrize('how', ['flipped', 'truncated', 'missing'])
@pytest.mark.parametrize('file', ['shards/interactions-00000.array_record', 'rows/plan.npz', 'rows/pairs.json'])
def test_damaged_data(file, how, made, tmp_path, refusal):
    name, file = file.split('/')
    copy = damaged(made, tmp_path, name, file, how)
    expected = 'missing' if how == 'missing' else 'corrupt'
    words(refusal(f'--config.data.{name}={copy}'), str(copy / file), expected, f'data_pipelines.{name}')


@pytest.mark.parametrize('name', ['shards', 'rows', 'model'])
@pytest.mark.parametrize('content', ['', '{"sh', '[]', '{}', 'null', '\xff'])
def test_damaged_descriptions(name, content, made, tmp_path, refusal):
    file = 'model.json' if name == 'model' else 'manifest.json'
    shutil.copytree(made / name, tmp_path / name)
    (tmp_path / name / file).write_bytes(content.encode('latin1'))
    key = 'model.path' if name == 'model' else f'data.{name}'
    remedy = 'rlhi_jax.convert import' if name == 'model' else f'data_pipelines.{name}'
    words(refusal(f'--config.{key}={tmp_path / name}'), str(tmp_path / name), remedy)


def test_rows_of_something_else(made, tmp_path, refusal):
    tiny.write_preferences(tmp_path / 'pairs.jsonl', 5, seed=9)
    flags = [f'--config={tiny.CONFIG}', *paths_in(tmp_path)]
    tiny.run_program('data_pipelines.shards', *flags)
    words(
        refusal(f'--config.data.shards={tmp_path / "shards"}'), 'other data', str(made / 'rows'), 'data_pipelines.rows'
    )
    shutil.copytree(made / 'model', tmp_path / 'model')
    template = tmp_path / 'model' / 'tokenizer' / 'chat_template.jinja'
    template.write_text(template.read_text() + '{# another #}')
    words(refusal(f'--config.model.path={tmp_path / "model"}'), 'other template', 'data_pipelines.rows')


def test_empty_shards(made, tmp_path, refusal):
    manifest = read_json(made / 'shards' / 'manifest.json', '')
    (tmp_path / 'shards').mkdir()
    write_json(tmp_path / 'shards' / 'manifest.json', manifest | {'shards': []})
    words(refusal(f'--config.data.shards={tmp_path / "shards"}'), 'holds no interactions', 'data_pipelines.shards')


def test_model_without_checkpoints(made, tmp_path, refusal):
    shutil.copytree(made / 'model', tmp_path / 'model', ignore=shutil.ignore_patterns('params'))
    words(
        refusal(f'--config.model.path={tmp_path / "model"}'), str(tmp_path / 'model'), 'no checkpoint', 'train further'
    )


def test_damaged_parameters(made, tmp_path, refusal):
    """Found when they are read: the workdir is this run's by then, but holds no numbers; another setting is refused."""
    shutil.copytree(made / 'model', tmp_path / 'model')
    largest = max((tmp_path / 'model' / 'params').rglob('d/*'), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    left = ['checkpoints', 'model.json', 'run.json', 'tokenizer']
    model = f'--config.model.path={tmp_path / "model"}'
    words(refusal(model, left=left), str(tmp_path / 'model' / 'params'), 'import the model or train it again')
    words(refusal(model, '--config.ref_sees_persona=False', left=left), 'config.ref_sees_persona', '--workdir')
    words(refusal(model, '--config.seed=1', left=left), 'config.seed', '--workdir')
    (tmp_path / 'run' / 'run.json').write_text('{')
    words(refusal(model, left=left), 'run.json', 'remove', '--workdir')


def test_new_head_on_a_reward_model(rewards, refusal):
    flags = [f'--config.model.path={rewards}', '--config.objective=reward', '--config.model.new_head=True']
    words(refusal(*flags), 'config.model.new_head', 'already', 'unset it')
    words(refusal(f'--config.model.path={rewards}'), "'lm' head", 'name another config.model.path')


def test_reference_of_something_else(made, tmp_path, refusal):
    """A cache made by another model, or one whose reference saw no persona, is never mixed in."""
    identity = dict(model='m', data='d', template='t', dtype='float32', ref_sees_persona=True)
    for folder in ('cache', 'run/reference'):
        (tmp_path / folder).mkdir(parents=True)
    for name, value in dict(model='n', ref_sees_persona=False, dtype='bfloat16').items():
        write_json(tmp_path / 'cache' / 'identity.json', identity | {name: value})
        with pytest.raises(UserError, match=f'another {name}.*remove the folder'):
            ReferenceCache(tmp_path / 'cache', identity)
    write_json(tmp_path / 'cache' / 'identity.json', identity)
    ReferenceCache(tmp_path / 'cache', identity)
    write_json(tmp_path / 'run' / 'reference' / 'identity.json', identity)
    words(refusal(left=['reference']), str(tmp_path / 'run' / 'reference'), 'stale', 'another', 'remove the folder')


def test_damaged_checkpoint_of_the_run(made, tmp_path):
    """A run's own checkpoint: the step is named, and going on from the one before it is the remedy."""
    params, checkpoints = {'a': np.ones((64, 64), np.float32)}, RunCheckpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, params, params, {'step': step})
    checkpoints.close()
    assert saved_steps(tmp_path) == [1, 2]
    newest = tmp_path / 'checkpoints' / '2'
    for path in (newest / 'params').rglob('d/*'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match=f'{newest} cannot be read.*remove that folder') as refused:
        RunCheckpoints(tmp_path, keep=2).restore(2, params, params)
    assert '\n' not in str(refused.value)
    shutil.rmtree(newest)
    restored, _, progress = RunCheckpoints(tmp_path, keep=2).restore(1, params, params)
    assert progress == {'step': 1} and np.array_equal(restored['a'], params['a'])
    (tmp_path / 'checkpoints' / '1' / '_CHECKPOINT_METADATA').unlink()  # where a killed deletion begins
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize('damage', ['flipped', 'truncated', 'empty', 'other arrays', 'no identity'])
def test_damaged_reference(damage, tmp_path, refusal):
    part = tmp_path / 'run' / 'reference' / 'part-000000.npz'
    part.parent.mkdir(parents=True)
    names = ('a', 'b') if damage == 'other arrays' else ('keys', 'logp')
    np.savez(part, **dict(zip(names, (np.zeros((5, 4), np.int64), np.zeros(5, np.float32)), strict=True)))
    data = bytearray(part.read_bytes())
    data[200] ^= 1
    part.write_bytes({'flipped': data, 'truncated': data[:300], 'empty': b''}.get(damage, part.read_bytes()))
    words(refusal(left=['reference']), 'reference', 'remove the folder')


MESHES = {  # over 8 devices
    'product': (['mesh.data=3', 'mesh.fsdp=1'], 'config.mesh', '8 devices'),
    'context': (['mesh.context=2'], 'config.mesh.context', 'set it to 1'),
    'heads': (['mesh.tensor=8', 'model.path=few'], 'config.mesh.tensor', 'num_heads of 4', 'divisor of 4'),
    'batch': (['train.accumulate=2'], 'config.train.batch_rows / config.train.accumulate is 4', '= 8', 'multiple'),
}


@pytest.mark.parametrize(
    ('mesh', 'rows', 'expected'),
    [
        (dict(tensor=16), 8, 'config.mesh.tensor is 16.*num_heads of 8.*divisor of 8'),
        (dict(tensor=4, fsdp=3), 12, 'config.mesh.fsdp is 3.*width of 32.*divisor of 32'),
        (dict(data=2, fsdp=4), 12, 'config.train.batch_rows is 12.*= 8.*multiple'),
    ],
)
def test_meshes_that_do_not_fit(mesh, rows, expected):
    with pytest.raises(UserError, match=expected):
        check_fit(SimpleNamespace(shape=dict(data=1, fsdp=1, tensor=1) | mesh), tiny.SPEC, rows)


@pytest.fixture(scope='module')
def commands(made, tmp_path_factory) -> dict[str, tuple[subprocess.CompletedProcess, Path]]:
    """Whole programs as a user runs them, two at a time; each with a folder that must stay away."""
    folder = tmp_path_factory.mktemp('commands')
    tiny.write_model(folder / 'few', spec=dataclasses.replace(tiny.SPEC, num_heads=4, num_kv_heads=4))
    (folder / 'bad.py').write_text(f'{CONFIG_HEAD}\n\ndef get_config(\n')
    (folder / 'bad.jsonl').write_text('{"chosen": "a"}\nno\n[]\n\n')
    (folder / 'empty.jsonl').write_text('')
    (folder / 'broken.jsonl.gz').write_bytes(b'\x1f\x8b\x08 no more')
    shutil.copytree(made / 'shards', folder / 'other shards')
    sound = [f'--config={tiny.CONFIG}', *paths_in(made)]
    wanted = {
        'unknown key': ('rlhi_jax.train', [*sound, '--config.trian.epochs=1'], 'workdir'),
        'bad file': ('rlhi_jax.train', [f'--config={folder / "bad.py"}'], 'workdir'),
        'no pairs': ('data_pipelines.shards', [*sound, f'--config.data.pairs={folder / "bad.jsonl"}'], 'data.shards'),
        'empty': ('data_pipelines.shards', [*sound, f'--config.data.pairs={folder / "empty.jsonl"}'], 'data.shards'),
        'bad gz': (
            'data_pipelines.shards',
            [*sound, f'--config.data.pairs={folder / "broken.jsonl.gz"}'],
            'data.shards',
        ),
        'no room': ('data_pipelines.rows', [*sound, '--config.rows.tokens=8'], 'data.rows'),
        'other output': ('data_pipelines.rows', [*sound, '--config.rows.tokens=500'], None),
    }
    for name, (changes, *_) in MESHES.items():
        changes = [f'--config.{c}'.replace('path=', f'path={folder}/') for c in changes]
        wanted[f'mesh: {name}'] = ('rlhi_jax.train', [*sound, *changes], 'workdir')

    def run(case: str):
        module, flags, output = wanted[case]
        target = folder / f'out of {case}'
        if output:
            flags = [*flags, f'--{output}={target}' if output == 'workdir' else f'--config.{output}={target}']
        env = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
        return tiny.run_program(module, *flags, env=env, check=False, timeout=120), target

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(wanted, pool.map(run, wanted), strict=True))


COMMANDS = {
    'unknown key': ('trian',),
    'bad file': ('bad.py, line 6', 'never closed'),
    'no pairs': ('bad.jsonl', 'lines_read', "'dropped_not_json': 1", "'dropped_not_an_object': 1"),
    'empty': ('empty.jsonl', 'counts'),
    'bad gz': ('broken.jsonl.gz', 'cannot be read'),
    'no room': ('no pair fits', "'longer_than_a_row'", 'config.rows.tokens'),
    'other output': ('config.data.rows', 'other input or settings', '--overwrite'),
    **{f'mesh: {name}': expected for name, (_, *expected) in MESHES.items()},
}


@pytest.mark.parametrize('case', COMMANDS)
def test_commands(case, commands, made):
    ended, target = commands[case]
    # Only what all trees were looked at for is preceded by their progress.
    err = ended.stderr.removeprefix(ended.stderr.splitlines()[0] + '\n') if case == 'no room' else ended.stderr
    words(one_refusal(ended.returncode, ended.stdout, err), *COMMANDS[case])
    manifest = read_json(made / 'rows' / 'manifest.json', '')
    assert manifest['identity']['capacities']['tokens'] == 512, 'finished output was touched'
    assert not target.exists() and not target.with_name(f'.{target.name}.tmp').exists(), 'something was written'
