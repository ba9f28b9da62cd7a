"""What every stage shares: a config, an output folder that appears whole or not at all, a journal, and a summary."""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from rlhi_jax.config import define_config_flag, load_config, require
from rlhi_jax.errors import UserError, run
from rlhi_jax.files import complete_lines, digest, file_digest, new_file, new_folder, read_json, write_bytes, write_json

RECORDS = 'records.jsonl'
Record = dict[str, Any]
Work = Callable[[ConfigDict, Path], dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
      name: the stage's name, as in its manifest.
      work: writes the stage's files into the folder that it is given, with a manifest, and returns its counts.
      output: the config key that names the output folder, such as 'data.shards'.
      identity: digests of all that the output depends on; a finished folder with the same identity is kept as it is.
    """

    name: str
    work: Work
    output: str
    identity: Callable[[ConfigDict], dict[str, Any]]

    def run(self, config: ConfigDict, *, overwrite: bool = False) -> dict[str, int]:
        """Make the output folder unless it is up to date; returns its counts.

        Raises:
          UserError: the folder was made from other input or settings and `overwrite` is false, or the work cannot be
            done.
        """
        section, key = self.output.split('.')
        if not config[section][key]:
            raise UserError(f'config.{self.output} is empty: name the folder to write')
        folder = Path(config[section][key])
        wanted = self.identity(config)
        if (folder / 'manifest.json').exists() and not overwrite:
            manifest = read_json(folder / 'manifest.json', 'remove the folder, or pass --overwrite', fields=())
            if manifest.get('made_from') == wanted:
                _forget_work(folder)  # left by a run killed as it was done
                print(f'{folder}: up to date {json.dumps(manifest.get("counts"))}', flush=True)
                return manifest['counts']
            raise UserError(
                f'config.{self.output}: {folder} was made from other input or settings: remove or rename it, or run '
                f'the stage {self.name!r} as a program with --overwrite'
            )
        with new_folder(folder, overwrite=overwrite) as temporary:
            temporary.chmod(0o700)  # what users said is for its owner's eyes
            counts = self.work(config, temporary)
        _forget_work(folder)
        print(f'{folder}: {json.dumps(counts)}', flush=True)
        return counts

    def write(self, config: ConfigDict, folder: Path, records: Iterable[Record], counts: Counter) -> dict[str, int]:
        """Write records.jsonl and the manifest of a stage whose output is records."""
        write_records(folder / RECORDS, records)
        counts = dict(sorted(counts.items()))
        write_json(folder / 'manifest.json', dict(stage=self.name, made_from=self.identity(config), counts=counts))
        return counts

    def main(self) -> None:
        """Run the stage as a program."""
        define_config_flag()
        flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')
        run(lambda: self.run(load_config(flags.FLAGS.config), overwrite=flags.FLAGS.overwrite))


def write_records(path: Path, records: Iterable[Record]) -> None:
    with new_file(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, sort_keys=True).encode() + b'\n')


def stream_records(path: Path) -> Iterator[Record]:
    with open(path, 'rb') as file:
        yield from map(json.loads, file)


def load_records(path: Path) -> list[Record]:
    return list(stream_records(path))


def input_folder(config: ConfigDict, key: str) -> Path:
    """The finished folder of an earlier stage that `config.data.KEY` names.

    Raises:
      UserError: the key is empty, or the folder has no manifest.
    """
    require(config, f'data.{key}')
    folder = Path(config.data[key])
    if not (folder / 'manifest.json').exists():
        raise UserError(f'config.data.{key}: {folder} is no finished folder of the stage {key!r}: run that stage first')
    return folder


def read_records(config: ConfigDict, key: str) -> list[Record]:
    """The records of an earlier stage's folder, which `config.data.KEY` names."""
    return load_records(input_folder(config, key) / RECORDS)


def input_digest(config: ConfigDict, key: str) -> str:
    """Identifies the records of an earlier stage's folder."""
    return file_digest(input_folder(config, key) / RECORDS)


def journal_path(folder: Path) -> Path:
    """Where a stage that writes `folder` (or its temporary twin) keeps what it has done so far."""
    name = folder.name.removeprefix('.').removesuffix('.tmp')
    return folder.with_name(f'.{name}.journal.jsonl')


def work_folder(folder: Path) -> Path:
    """Where a stage that writes `folder` (or its temporary twin) keeps files of work that is not done."""
    return journal_path(folder).with_suffix('')


def _forget_work(folder: Path) -> None:
    journal_path(folder).unlink(missing_ok=True)
    shutil.rmtree(work_folder(folder), ignore_errors=True)


class Journal:
    """Results of long work, appended one by one as they come; what a killed run has done is not done again.

    A file of JSON lines beside the output folder: first what the work is of, then [key, value] pairs. A journal of
    other work, or half a line at its end, is discarded.
    """

    def __init__(self, folder: Path, identity: Any):
        self.path, header = journal_path(folder), json.dumps(digest(identity)).encode()
        lines = complete_lines(self.path)
        if not lines or lines[0].strip() != header:
            lines = [header + b'\n']
        write_bytes(self.path, b''.join(lines))
        self.path.chmod(0o600)
        self.done: dict[str, Any] = dict(map(json.loads, lines[1:]))
        self._file = open(self.path, 'ab', buffering=0)  # noqa: SIM115 - open as long as the work

    def add(self, key: str, value: Any) -> None:
        """Note one result; it is on disk when this returns."""
        self._file.write(json.dumps([key, value], ensure_ascii=False).encode() + b'\n')
        os.fsync(self._file.fileno())
        self.done[key] = value

    def missing(self, keys: Iterable[str]) -> Iterator[str]:
        return (key for key in keys if key not in self.done)
