"""What every stage shares: a task, an output folder that appears whole or not at all, records, and a summary.

Stages read records in order and write them as they go: of what was said a block is in memory, or what one user said;
of all there is no more than numbers and the names of users, of what is chosen, and of pairs.
"""

import contextlib
import dataclasses
import functools
import heapq
import itertools
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.journal import Journal, journal_name, output_name, work_folder
from rlhi_jax.cli.program import define_config_flag, load_config, run
from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import HeldFolder, file_digest, new_file, new_folder, read_json, settle_if_free, write_json

RECORDS = 'records.jsonl'
STAGES = dict(conversations='ingest', scores='oracle_scores')  # by config.data.KEY, where they are not called KEY
Record = dict[str, Any]
T = TypeVar('T')


class Task:
    """One making of a stage's folder.

    Attributes:
      config: what the stage was asked to do.
      folder: to write into; it becomes the output folder when all is done.
      identity: digests of all that the output depends on, and the stage's version.
      stage: the stage's name.
      learned: how an endpoint wants requests, where its first refusals said so.
    """

    def __init__(self, config: ConfigDict, folder: Path, identity: Any, stage: str):
        self.config, self.folder, self.identity, self.stage = config, folder, identity, stage
        self.learned: dict[str, str] = {}
        self._kept: tuple[Hashable, Any] = (None, None)

    @property
    def name(self) -> str:
        """The output folder's name."""
        return output_name(self.folder)

    @functools.cached_property
    def journal(self) -> Journal:
        """What this process, or one that was killed, has done so far; of other settings there may be others."""
        return Journal(work_folder(self.folder) / journal_name(self.identity), self.identity)

    def write(self, records: Iterable[Record], counts: Counter) -> dict[str, int]:
        """Write records.jsonl, then the manifest, of a stage whose output is records."""
        write_records(self.folder / RECORDS, records)
        return self.write_manifest(counts)

    def write_manifest(self, counts: Counter, **more: Any) -> dict[str, int]:
        """Write manifest.json; returns the counts in the order of their names."""
        counts = dict(sorted(counts.items()))
        write_json(self.folder / 'manifest.json', self.manifest(counts, **more))
        return counts

    def manifest(self, counts: Mapping[str, int], **more: Any) -> dict[str, Any]:
        """What a manifest says of this making: the stage, what the output was made from, and its counts."""
        return dict(more, stage=self.stage, made_from=self.identity, counts=counts)

    def close(self) -> None:
        """Close the journal, if there is one: an open file takes room even when it is removed."""
        if 'journal' in vars(self):
            self.journal.close()

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` made when it was last asked for under this key; only one such thing, a model, is in memory."""
        if self._kept[0] != key:
            self._kept = (None, None)
            self._kept = (key, make())
        return self._kept[1]

    def release(self) -> None:
        """Forget what is kept, and give its memory back."""
        self._kept = (None, None)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
      name: the stage's name, as in its manifest.
      version: raised whenever the same input and settings would give another output. `tests/test_golden.py` holds every
        stage to it.
      work: writes the files of a task's folder, with a manifest, and returns its counts.
      output: the config key that names the output folder, such as 'data.shards'.
      identity: digests of the inputs and settings that the output depends on; a finished folder with the same identity
        and version is kept as it is.
      check: refuses, by a UserError, a manifest that the config does not accept, of a folder made now or before.
    """

    name: str
    version: int
    work: Callable[[Task], dict[str, int]]
    output: str
    identity: Callable[[ConfigDict], dict[str, Any]]
    check: Callable[[ConfigDict, dict[str, Any]], None] = lambda config, manifest: None

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
        settle_if_free(folder)
        wanted = self.made_from(config)
        if (folder / 'manifest.json').exists() and not overwrite:
            manifest = read_json(folder / 'manifest.json', 'remove the folder, or pass --overwrite', fields=())
            if manifest.get('made_from') == wanted:
                self.check(config, manifest)
                _forget_work(folder)  # left by a run killed as it was done
                print(f'{folder}: up to date {json.dumps(manifest.get("counts"))}', flush=True)
                return manifest['counts']
            raise UserError(
                f'config.{self.output}: {folder} was made from other input or settings: remove or rename it, or run '
                f'the stage {self.name!r} as a program with --overwrite'
            )
        with new_folder(folder, overwrite=overwrite) as temporary:
            temporary.chmod(0o700)  # what users said is for its owner's eyes
            with contextlib.closing(Task(config, temporary, wanted, self.name)) as task:
                counts = self.work(task)
            self.check(config, read_json(temporary / 'manifest.json', ''))
        _forget_work(folder)
        print(f'{folder}: {json.dumps(counts)}', flush=True)
        return counts

    def made_from(self, config: ConfigDict) -> dict[str, Any]:
        """All that the output depends on, as the manifest holds it: the identity and the stage's version."""
        return self.identity(config) | dict(version=self.version)

    def main(self) -> None:
        """Run the stage as a program."""
        define_config_flag()
        flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')
        run(lambda: self.run(load_config(flags.FLAGS.config), overwrite=flags.FLAGS.overwrite))


def write_records(path: Path, records: Iterable[Record]) -> None:
    with new_file(path) as file:
        file.writelines(map(as_line, records))


def as_line(record: Record) -> bytes:
    """A record as files hold it."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True).encode() + b'\n'


def stream_records(path: Path) -> Iterator[Record]:
    """The records of a file.

    Raises:
      UserError: naming the line that is damaged.
    """
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                raise UserError(
                    f'{path}, line {number} is damaged: remove {path.parent} and run its stage again'
                ) from None
            yield record


def load_records(path: Path) -> list[Record]:
    return list(stream_records(path))


def input_folder(config: ConfigDict, key: str) -> Path:
    """The finished folder of an earlier stage that `config.data.KEY` names.

    Raises:
      UserError: the key is empty, or the folder has no manifest, or that of another stage.
    """
    require(config, f'data.{key}')
    folder, stage = Path(config.data[key]), STAGES.get(key, key)
    if not (folder / 'manifest.json').exists():
        raise UserError(
            f'config.data.{key}: {folder} is no finished folder of the stage {stage!r}: run that stage first'
        )
    made_by = read_json(folder / 'manifest.json', f'run the stage {stage!r} again', fields=()).get('stage', stage)
    if made_by != stage:
        raise UserError(
            f'config.data.{key}: {folder} is of the stage {made_by!r}, not of {stage!r}: name another folder'
        )
    return folder


def read_records(config: ConfigDict, key: str) -> Iterator[Record]:
    """The records of an earlier stage's folder, which `config.data.KEY` names."""
    return stream_records(input_folder(config, key) / RECORDS)


def input_digest(config: ConfigDict, key: str) -> str:
    """Identifies the records of an earlier stage's folder."""
    return file_digest(input_folder(config, key) / RECORDS)


def in_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block


def in_passes(source: Callable[[Counter], Iterator[T]], steps: Sequence[Callable], counts: Counter) -> Iterator[T]:
    """What comes out of the last of several steps, each of which asks a model and notes its answers in the journal.

    Everything has been through a step before anything goes into the next: so one model is in memory at a time, and
    never all items. In a later pass earlier steps find their answers; before the first, the source is read to its end,
    so that what is wrong with the input is known before a model is asked.

    Args:
      source: makes what goes into the first step, anew for each pass.
      steps: step(items, counts) makes items of items.
      counts: what the source and the steps count in the last pass is added to it.
    """
    for number in range(len(steps)):
        exhaust(_through(source, steps[:number], Counter()))
    yield from _through(source, steps, counts)


def at_most(
    most: int, source: Callable[[Counter], Iterator[T]], rank: Callable[[T], Any], counted: str
) -> Callable[[Counter], Iterator[T]]:
    """A source of no more than `most` items (0: all) of another, in its order; the others are counted.

    Args:
      rank: which come first; no two items have the same.
      counted: the name to count the others under.
    """
    if not most:
        return source
    chosen = set(heapq.nsmallest(most, map(rank, source(Counter()))))

    def some(counts: Counter) -> Iterator[T]:
        for item in source(counts):
            if rank(item) in chosen:
                yield item
            else:
                counts[counted] += 1

    return some


def exhaust(items: Iterable) -> None:
    deque(items, maxlen=0)


def _through(source: Callable[[Counter], Iterator[T]], steps: Sequence[Callable], counts: Counter) -> Iterator[T]:
    return functools.reduce(lambda items, step: step(items, counts), steps, source(counts))


def _forget_work(folder: Path) -> None:
    if (left := work_folder(folder)).exists():
        with contextlib.suppress(UserError), HeldFolder(folder):  # unless another run is making the folder again
            shutil.rmtree(left, ignore_errors=True)
