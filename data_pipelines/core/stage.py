"""Stages of the pipeline and their tasks: a stage makes an output folder, which appears only when it is complete.

Stages read and write records one after another. At most one block of text, or one user's history, is in memory at a
time. Only counters, user ids and the ids of chosen items stay in memory for the whole run.
"""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.counts import Step, in_words, with_time
from data_pipelines.core.journal import Journal, journal_name, output_name, work_folder
from data_pipelines.core.record_files import RECORDS, write_records
from data_pipelines.core.records import Record
from rlhi_jax.cli.program import define_config_flag, load_config, run, workdir_path
from rlhi_jax.config.loop_paths import stage_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import HeldFolder, new_folder, read_json, settle_if_free, write_json
from rlhi_jax.rounds.parts import State

KEPT = 'kept'  # stands for the sum of all counts of kept items


def define_stage_flags() -> None:
    """Define the flags of a stage that runs as a program."""
    define_config_flag()
    flags.DEFINE_string(
        'workdir', None, "A loop's folder. The stage then reads and writes the folders that the loop uses."
    )
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')


class Task:
    """One run of a stage.

    Attributes:
      config: the settings.
      folder: the folder to write into, which becomes the output folder once the work is done.
      made_from: everything that the output depends on, as stored in the manifest.
      stage: the stage's name.
      learned: request fields that an endpoint has rejected. Each is mapped to the name that the endpoint expects
        instead, or to '' if the field must be omitted.
    """

    def __init__(self, config: ConfigDict, folder: Path, made_from: Any, stage: str):
        self.config, self.folder, self.made_from, self.stage = config, folder, made_from, stage
        self.learned: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The output folder's name."""
        return output_name(self.folder)

    @functools.cached_property
    def journal(self) -> Journal:
        """The journal of answers obtained so far by this run or by an earlier, killed run with the same settings."""
        return Journal(work_folder(self.folder) / journal_name(self.made_from), self.made_from)

    def write(self, records: Iterable[Record], counts: Counter) -> dict[str, int]:
        """Write records.jsonl and then the manifest; return the counts."""
        write_records(self.folder / RECORDS, records)
        return self.write_manifest(counts)

    def write_manifest(self, counts: Counter, **more: Any) -> dict[str, int]:
        """Write manifest.json, including any extra fields; return the counts, sorted by name."""
        counts = dict(sorted(counts.items()))
        write_json(self.folder / 'manifest.json', self.manifest(counts, **more))
        return counts

    def manifest(self, counts: Mapping[str, int], **more: Any) -> dict[str, Any]:
        """Return the manifest's content: the stage, `made_from`, the counts and any extra fields."""
        return dict(more, stage=self.stage, made_from=self.made_from, counts=counts)

    def close(self) -> None:
        """Close the journal if it was opened. (An open file takes up disk space even after it is removed.)"""
        if 'journal' in vars(self):
            self.journal.close()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: how its folder is made, and how the data card and `forget` treat the folder.

    Attributes:
      name: the stage's name, as in its manifest. The module `data_pipelines.NAME` defines the stage.
      version: a number that must be raised whenever a change to the code changes the output for the same input and
        settings. `tests/test_golden.py` checks this for every stage.
      work: a function that writes the files of a task's folder, including the manifest, and returns the counts.
      output: the config key of the output folder, such as 'data.shards'.
      identity: a function that returns the input digests and the settings that the output depends on. A finished folder
        with the same identity and version is up to date.
      check: a function that raises UserError if a manifest does not meet the requirements in the config. It runs on
        new and on finished folders.
      files: the record files. Each is mapped to the name of a count, which must equal the number of lines in the file.
        KEPT stands for the sum of all counts of kept items.
      contents: a function that counts what a folder contains outside its record files. It returns numbers, each keyed
        by the name of the count that it must equal.
      digests: a function that returns digests in addition to the digests of the folder's files. Later stages use all
        these digests to identify the folder.
      steps: the counts of items read, kept and dropped, which must add up. The data card leaves out a stage
        without steps.
      shown: names of counts that the stage prints when it has finished, besides the counts of the first step.
      summary: a function that computes statistics for the data card from the folder's records and manifest.
      forgetting: how a user is forgotten: 'rewritten' if the folder's records are rewritten without that user, or
        'removed' if the folder is removed and the stage has to make it again.
    """

    name: str
    version: int
    work: Callable[[Task], dict[str, int]]
    output: str
    identity: Callable[[ConfigDict], dict[str, Any]]
    check: Callable[[ConfigDict, dict[str, Any]], None] = lambda config, manifest: None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    contents: Callable[[Path], Mapping[str, int]] = lambda folder: {}
    digests: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    steps: Sequence[Step] = ()
    shown: Sequence[str] = ()
    summary: Callable[[Iterable[Record], dict[str, Any]], dict[str, Any]] | None = None
    forgetting: Literal['rewritten', 'removed'] = 'rewritten'

    def run(self, config: ConfigDict, *, overwrite: bool = False) -> dict[str, int]:
        """Make the output folder, unless it is up to date and `overwrite` is false; return its counts.

        The stage prints a one-line summary. The full counts are in the manifest and in the data card.

        Raises:
          UserError: the folder was made from different input, settings or code and `overwrite` is false, or the work
            cannot be done.
        """
        path, start = attrgetter(self.output)(config), time.monotonic()
        if not path:
            raise UserError(f'config.{self.output} is empty: set it to the folder to write')
        folder = Path(path)
        settle_if_free(folder)
        made_from = self.made_from(config)
        if (folder / 'manifest.json').exists() and not overwrite:
            manifest = read_json(folder / 'manifest.json', 'remove the folder', fields=())
            if manifest.get('made_from') == made_from:
                self.check(config, manifest)
                _remove_work(folder)  # left by a run that was killed just as it finished
                print(f'{folder}: up to date; {in_words(self.steps, self.shown, manifest["counts"])}', flush=True)
                return manifest['counts']
            raise UserError(
                f'config.{self.output}: {folder} was made with different input or settings, or by another version of '
                'the stage: pass --overwrite (for the loop, --redo)'
            )
        with new_folder(folder, overwrite=overwrite) as temporary:
            temporary.chmod(0o700)  # only the folder's owner may read user text
            with contextlib.closing(Task(config, temporary, made_from, self.name)) as task:
                counts = self.work(task)
            self.check(config, read_json(temporary / 'manifest.json', ''))
        _remove_work(folder)
        line = in_words(self.steps, self.shown, counts)
        print(f'{folder}: {with_time(line, time.monotonic() - start)}', flush=True)
        return counts

    def state(self, config: ConfigDict) -> State:
        """Return the state of the output folder, compared with the current input, settings and code."""
        folder = Path(attrgetter(self.output)(config))
        settle_if_free(folder)
        if not (folder / 'manifest.json').exists():
            return State.MISSING
        try:
            made_from = self.made_from(config)
        except UserError:  # an input is missing
            return State.OUT_OF_DATE
        stored = read_json(folder / 'manifest.json', 'remove the folder', fields=()).get('made_from')
        return State.UP_TO_DATE if stored == made_from else State.OUT_OF_DATE

    def made_from(self, config: ConfigDict) -> dict[str, Any]:
        """Return everything the output depends on, as stored in the manifest: the identity and the stage's version."""
        return self.identity(config) | dict(version=self.version)

    def main(self) -> None:
        """Run the stage as a program."""

        def main() -> None:
            from rlhi_jax.parallel.crew import run_shared  # imports JAX, which is slow, so flags are parsed first

            config = load_config(flags.FLAGS.config)
            if flags.FLAGS.workdir:
                config = stage_config(config, workdir_path(flags.FLAGS.workdir), self.name)
            run_shared(lambda: self.run(config, overwrite=flags.FLAGS.overwrite), config)

        run(main)


def _remove_work(folder: Path) -> None:
    if (left := work_folder(folder)).exists():
        with contextlib.suppress(UserError), HeldFolder(folder):  # unless another run is making the folder again
            shutil.rmtree(left, ignore_errors=True)
