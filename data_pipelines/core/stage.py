"""Stages and tasks: a stage makes an output folder, which appears whole or not at all.

Stages read records in order and write them as they go. At most one block of text, or one user's history, is in memory;
for the whole run only counters, user ids and ids of what is chosen are kept.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.journal import Journal, journal_name, output_name, work_folder
from data_pipelines.core.record_files import RECORDS, write_records
from data_pipelines.core.records import Record
from rlhi_jax.cli.program import define_config_flag, load_config, run
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import HeldFolder, new_folder, read_json, settle_if_free, write_json

KEPT = 'kept'  # stands for all counts of kept items


class Task:
    """One run of a stage's work.

    Attributes:
      config: the settings.
      folder: the folder to write into; it becomes the output folder once the work is done.
      made_from: all that the output depends on, as the manifest will hold it.
      stage: the stage's name.
      learned: how an endpoint wants its requests, learned from its first refusals.
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
        """Answers that this process, or a killed one with the same settings, has obtained so far."""
        return Journal(work_folder(self.folder) / journal_name(self.made_from), self.made_from)

    def write(self, records: Iterable[Record], counts: Counter) -> dict[str, int]:
        """Write records.jsonl, then the manifest; returns the counts."""
        write_records(self.folder / RECORDS, records)
        return self.write_manifest(counts)

    def write_manifest(self, counts: Counter, **more: Any) -> dict[str, int]:
        """Write manifest.json with fields beside the usual ones; returns the counts, sorted by name."""
        counts = dict(sorted(counts.items()))
        write_json(self.folder / 'manifest.json', self.manifest(counts, **more))
        return counts

    def manifest(self, counts: Mapping[str, int], **more: Any) -> dict[str, Any]:
        """The manifest's content: the stage, what the output was made from, and the counts."""
        return dict(more, stage=self.stage, made_from=self.made_from, counts=counts)

    def close(self) -> None:
        """Close the journal if it was opened: an open file occupies the disk even after it is removed."""
        if 'journal' in vars(self):
            self.journal.close()


class Step(NamedTuple):
    """Counts of one unit, for the data card to add up.

    A count belongs to the step with the longest matching prefix.

    Attributes:
      unit: what is counted, in the plural.
      read: names of the counts of items read; none if the stage does not count them.
      dropped: prefixes of the counts of dropped items.
    """

    unit: str
    read: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ('dropped_',)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: how its folder is made, and how the data card and `forget` treat the folder.

    Attributes:
      name: the stage's name, as in its manifest; the module `data_pipelines.NAME` defines it.
      version: raised whenever the same input and settings would give another output. `tests/test_golden.py` holds every
        stage to it.
      work: writes the files of a task's folder, with a manifest, and returns its counts.
      output: the config key that names the output folder, such as 'data.shards'.
      identity: digests of the inputs and settings that the output depends on. A finished folder with the same identity
        and version is up to date.
      check: raises UserError for a manifest that the config does not accept, on a new folder and on a finished one.
      files: record files by name, with the count that their number of lines must equal (KEPT: all that was kept).
      contents: counts of what the folder holds outside record files, by the name of the count that each must equal.
      digests: digests, beside those of its files, by which later stages know the folder.
      steps: the counts that must add up; without any, the data card leaves the stage out.
      summary: statistics for the data card, from the folder's records and manifest.
      forgetting: what forgetting a user does to the folder: its records are 'rewritten' without them, or the folder is
        'removed' for the stage to make again.
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
    summary: Callable[[Iterable[Record], dict[str, Any]], dict[str, Any]] | None = None
    forgetting: Literal['rewritten', 'removed'] = 'rewritten'

    def run(self, config: ConfigDict, *, overwrite: bool = False) -> dict[str, int]:
        """Make the output folder unless it is up to date; returns its counts.

        Raises:
          UserError: the folder was made from other input, settings or code and `overwrite` is false, or the work cannot
            be done.
        """
        section, key = self.output.split('.')
        if not config[section][key]:
            raise UserError(f'config.{self.output} is empty: name the folder to write')
        folder = Path(config[section][key])
        settle_if_free(folder)
        made_from = self.made_from(config)
        if (folder / 'manifest.json').exists() and not overwrite:
            manifest = read_json(folder / 'manifest.json', 'remove the folder, or pass --overwrite', fields=())
            if manifest.get('made_from') == made_from:
                self.check(config, manifest)
                _remove_work(folder)  # left by a run that was killed just as it finished
                print(f'{folder}: up to date {json.dumps(manifest.get("counts"))}', flush=True)
                return manifest['counts']
            raise UserError(
                f'config.{self.output}: {folder} was made from other input or settings, or by another version of the '
                f'stage: remove or rename it, or run the stage {self.name!r} as a program with --overwrite'
            )
        with new_folder(folder, overwrite=overwrite) as temporary:
            temporary.chmod(0o700)  # users' texts are for the folder's owner alone
            with contextlib.closing(Task(config, temporary, made_from, self.name)) as task:
                counts = self.work(task)
            self.check(config, read_json(temporary / 'manifest.json', ''))
        _remove_work(folder)
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


def _remove_work(folder: Path) -> None:
    if (left := work_folder(folder)).exists():
        with contextlib.suppress(UserError), HeldFolder(folder):  # unless another run is making the folder again
            shutil.rmtree(left, ignore_errors=True)
