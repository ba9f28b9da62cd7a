"""What `train` and the stages refuse: exit status 2, one line that names the cause and the remedy, nothing written.

Refusals of a config or a flag alone are in `test_config.py` and `test_program.py`.
"""

import dataclasses
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from refused import one_refusal, run_here, words

from rlhi_jax import train
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import RunCheckpoints, saved_steps
from rlhi_jax.models.parameters import check_fit
from rlhi_jax.scoring.reference import ReferenceCache


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    """A folder with a valid model, preferences, shards and rows."""
    folder = tmp_path_factory.mktemp('made')
    tiny.prepare(folder)
    return folder


@pytest.fixture(scope='module')
def rewards(made) -> Path:
    """A reward model in the same folder."""
    return tiny.write_model(made / 'reward model', spec=dataclasses.replace(tiny.SPEC, head='reward'))


def paths_in(folder: Path) -> list[str]:
    names = {'model.path': 'model', 'data.pairs': 'pairs.jsonl', 'data.shards': 'shards', 'data.rows': 'rows'}
    return [f'--config.{key}={folder / name}' for key, name in names.items()]


@pytest.fixture
def refusal(made, tmp_path, monkeypatch, capfd):
    """Runs the train program in this process and returns its refusal; flags come after those of a sound run."""

    def run(*flags: str, workdir: Path | None = tmp_path / 'run', left: tuple[str, ...] = ()) -> str:
        sound = [f'--config={tiny.CONFIG}', *([f'--workdir={workdir}'] if workdir else []), *paths_in(made)]
        message = one_refusal(*run_here(monkeypatch, capfd, ['train', *sound, *flags], train.main, train))
        written = sorted(path.name for path in workdir.iterdir()) if workdir and workdir.exists() else []
        assert written == sorted(left), 'something was written'
        return message

    return run


FLAGS = {
    'value out of bounds': (['--config.train.batch_rows=0'], 'config.train.batch_rows', 'at least 1'),
    'model not named': (['--config.model.path='], 'config.model.path', '--config.model.path=PATH'),
    'rows not named': (['--config.data.rows='], 'config.data.rows', '--config.data.rows=PATH'),
    'missing model': (['--config.model.path=/nowhere/m'], '/nowhere/m', 'rlhi_jax.convert import'),
    'missing shards': (['--config.data.shards=/nowhere/s'], '/nowhere/s', 'data_pipelines.shards'),
    'missing rows': (['--config.data.rows=/nowhere/r'], '/nowhere/r', 'data_pipelines.rows'),
    'model is a file': ([f'--config.model.path={tiny.CONFIG}'], 'tiny_config.py', 'rlhi_jax.convert import'),
    'shards are a file': ([f'--config.data.shards={tiny.CONFIG}'], 'tiny_config.py', 'data_pipelines.shards'),
    'shards are a model': (['--config.data.shards={made}/model'], 'model', 'data_pipelines.shards'),
    'rows are shards': (['--config.data.rows={made}/shards'], 'shards', 'data_pipelines.rows'),
    'shards are rows': (['--config.data.shards={made}/rows'], 'rows', 'data_pipelines.shards'),
    'no reward head': (['--config.objective=reward'], "'reward' head", 'config.model.new_head=True'),
    'new head on a policy': (['--config.model.new_head=True'], 'set config.model.new_head to False'),
    'other capacities': (['--config.rows.tokens=1024'], 'different capacities', 'config.rows', 'data_pipelines.rows'),
    'mesh product': (['--config.mesh.data=3', '--config.mesh.fsdp=1'], 'config.mesh', 'devices'),
    'mesh of two free axes': (['--config.mesh.data=-1'], 'config.mesh', 'one may be -1'),
    'no mesh': (['--config.mesh.tensor=0'], 'config.mesh', 'at least 1'),
}


@pytest.mark.parametrize('case', FLAGS)
def test_flags(case, made, refusal):
    flags, *expected = FLAGS[case]
    words(refusal(*(flag.format(made=made) for flag in flags)), *expected)


def test_workdirs(made, tmp_path, refusal):
    words(refusal(workdir=None), '--workdir')
    (tmp_path / 'file').write_text('')
    words(refusal('--workdir=' + str(tmp_path / 'file')), str(tmp_path / 'file'), '--workdir')
    # In an imported model's folder the run would overwrite the model's description.
    before = (made / 'model' / 'model.json').read_bytes()
    words(refusal(f'--workdir={made / "model"}'), str(made / 'model'), '--workdir')
    assert (made / 'model' / 'model.json').read_bytes() == before


def damaged(made: Path, tmp_path: Path, name: str, file: str, how: str) -> Path:
    """A copy of one of the folders in which one file has a flipped bit, is truncated or is missing."""
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


def test_rows_of_other_data(made, tmp_path, refusal):
    tiny.write_preferences(tmp_path / 'pairs.jsonl', 5, seed=9)
    flags = [f'--config={tiny.CONFIG}', *paths_in(tmp_path)]
    tiny.run_program('data_pipelines.shards', *flags)
    refused = refusal(f'--config.data.shards={tmp_path / "shards"}')
    words(refused, 'different data', str(made / 'rows'), 'data_pipelines.rows')
    shutil.copytree(made / 'model', tmp_path / 'model')
    template = tmp_path / 'model' / 'tokenizer' / 'chat_template.jinja'
    template.write_text(template.read_text() + '{# another #}')
    words(refusal(f'--config.model.path={tmp_path / "model"}'), 'different template', 'data_pipelines.rows')


def test_empty_shards(made, tmp_path, refusal):
    manifest = read_json(made / 'shards' / 'manifest.json', '')
    (tmp_path / 'shards').mkdir()
    write_json(tmp_path / 'shards' / 'manifest.json', manifest | {'shards': []})
    words(refusal(f'--config.data.shards={tmp_path / "shards"}'), 'contains no interactions', 'data_pipelines.shards')


def test_model_without_checkpoints(made, tmp_path, refusal):
    shutil.copytree(made / 'model', tmp_path / 'model', ignore=shutil.ignore_patterns('params'))
    words(
        refusal(f'--config.model.path={tmp_path / "model"}'),
        str(tmp_path / 'model'),
        'no checkpoint',
        'continue',
    )


def test_damaged_parameters(made, tmp_path, refusal):
    """The run finds the damage when it reads them. By then it owns the workdir, so other settings are refused."""
    shutil.copytree(made / 'model', tmp_path / 'model')
    largest = max((tmp_path / 'model' / 'params').rglob('d/*'), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    left = ['checkpoints', 'model.json', 'run.json', 'tokenizer']
    model = f'--config.model.path={tmp_path / "model"}'
    words(refusal(model, left=left), str(tmp_path / 'model' / 'params'), 'import or train the model again')
    words(refusal(model, '--config.ref_sees_persona=False', left=left), 'config.ref_sees_persona', '--workdir')
    words(refusal(model, '--config.seed=1', left=left), 'config.seed', '--workdir')
    (tmp_path / 'run' / 'run.json').write_text('{')
    words(refusal(model, left=left), 'run.json', 'use another --workdir')


def test_new_head_on_a_reward_model(rewards, refusal):
    flags = [f'--config.model.path={rewards}', '--config.objective=reward', '--config.model.new_head=True']
    words(refusal(*flags), 'already', 'set config.model.new_head to False')
    words(refusal(f'--config.model.path={rewards}'), "'lm' head", 'set config.model.path to another model')


def test_reference_of_another_model(made, tmp_path, refusal):
    """A cache of another model, or of a reference that did not see the persona, is never used."""
    identity = dict(model='m', data='d', template='t', dtype='float32', ref_sees_persona=True)
    for folder in ('cache', 'run/reference'):
        (tmp_path / folder).mkdir(parents=True)
    for name, value in dict(model='n', ref_sees_persona=False, dtype='bfloat16').items():
        write_json(tmp_path / 'cache' / 'identity.json', identity | {name: value})
        with pytest.raises(UserError, match=f'{name} has changed.*remove the folder'):
            ReferenceCache(tmp_path / 'cache', identity)
    write_json(tmp_path / 'cache' / 'identity.json', identity)
    ReferenceCache(tmp_path / 'cache', identity)
    write_json(tmp_path / 'run' / 'reference' / 'identity.json', identity)
    words(refusal(left=['reference']), str(tmp_path / 'run' / 'reference'), 'stale', 'has changed', 'remove the folder')


def test_damaged_checkpoint_of_the_run(made, tmp_path):
    """The error names the step of the checkpoint; without that folder the run resumes from the checkpoint before."""
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
    (tmp_path / 'checkpoints' / '1' / '_CHECKPOINT_METADATA').unlink()  # the first file that a deletion removes
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
def test_meshes_that_do_not_divide_the_model(mesh, rows, expected):
    with pytest.raises(UserError, match=expected):
        check_fit(SimpleNamespace(shape=dict(data=1, fsdp=1, tensor=1) | mesh), tiny.SPEC, rows)


@pytest.fixture(scope='module')
def commands(made, tmp_path_factory) -> dict[str, tuple[subprocess.CompletedProcess, Path]]:
    """Programs as a user runs them, two at a time; each with the output folder that it must not create."""
    folder = tmp_path_factory.mktemp('commands')
    tiny.write_model(folder / 'few', spec=dataclasses.replace(tiny.SPEC, num_heads=4, num_kv_heads=4))
    (folder / 'bad.py').write_text('def get_config(\n')
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
        'too small': ('data_pipelines.rows', [*sound, '--config.rows.tokens=8'], 'data.rows'),
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
    'bad file': ('bad.py, line 1', 'never closed'),
    'no pairs': ('bad.jsonl', 'lines_read', "'dropped_not_json': 1", "'dropped_not_an_object': 1"),
    'empty': ('empty.jsonl', 'no usable preferences'),
    'bad gz': ('broken.jsonl.gz', 'cannot be read'),
    'too small': ('no pair fits', "'longer_than_a_row'", 'config.rows.tokens'),
    'other output': ('config.data.rows', 'different input or settings', '--overwrite'),
    **{f'mesh: {name}': expected for name, (_, *expected) in MESHES.items()},
}


@pytest.mark.parametrize('case', COMMANDS)
def test_commands(case, commands, made):
    ended, target = commands[case]
    # A refusal after reading all trees comes below their progress, if reading took long enough to show any.
    err = ended.stderr.splitlines(keepends=True)[-1] if case == 'too small' else ended.stderr
    words(one_refusal(ended.returncode, ended.stdout, err), *COMMANDS[case])
    manifest = read_json(made / 'rows' / 'manifest.json', '')
    assert manifest['identity']['capacities']['tokens'] == 512, 'finished output was touched'
    assert not target.exists() and not target.with_name(f'.{target.name}.tmp').exists(), 'something was written'
