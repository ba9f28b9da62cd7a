"""Find the folders of finished stages, and check that their contents match the counts in their manifests."""

import graphlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.counts import dropped_by_unit, is_kept
from data_pipelines.core.inputs import stage_of
from data_pipelines.core.record_files import RECORDS, stream_records
from data_pipelines.core.records import Record
from data_pipelines.core.registry import stage_named
from data_pipelines.core.stage import KEPT, Stage
from rlhi_jax.config import base_config, listed
from rlhi_jax.io.files import file_digest, read_json


class Folder(NamedTuple):
    """A stage's finished folder.

    Attributes:
      kind: the folder's key in `config.data`.
      name: same as `kind`, or a relative path if the key lists several folders.
      path: the path of the folder.
      stage: the stage that made the folder.
    """

    kind: str
    name: str
    path: Path
    stage: Stage

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / 'manifest.json', 'rerun its stage', fields=('counts', 'made_from'))

    @property
    def forgotten(self) -> dict[str, int]:
        """The numbers of records that `forget` has removed since the stage ran, keyed by file name.

        For a folder of shards, the only key is 'trees', and the number counts removed trees.
        """
        return self.manifest.get('forgotten', {})

    @property
    def records(self) -> Iterator[Record]:
        """The records in records.jsonl or, if the stage does not write that file, the records in all record files."""
        names = (RECORDS,) if RECORDS in self.stage.files else tuple(self.stage.files)
        return (record for name in names for record in stream_records(self.path / name))


def folders(config: ConfigDict) -> tuple[list[Folder], list[str]]:
    """Return the finished folders that the config points to, and the names of missing folders.

    A folder's name is its key in `config.data`. If a key lists several folders, the name of each is its path relative
    to the deepest folder that contains all folders listed in this way.
    """
    stages = {kind: stage_named(stage_of(kind)) for kind in base_config().data}
    paths = {
        kind: listed(config, f'data.{kind}') if config.data[kind] else ['']
        for kind, stage in stages.items()
        if stage and stage.steps
    }
    shared = [os.path.abspath(path) for several in paths.values() if len(several) > 1 for path in several]
    above = os.path.commonpath(shared) if shared else ''
    finished, missing = [], []
    for kind, several in paths.items():
        for path in several:
            name = os.path.relpath(path, above) if len(several) > 1 else kind
            if path and (Path(path) / 'manifest.json').exists():
                finished.append(Folder(kind, name, Path(path), stages[kind]))
            else:
                missing.append(name)
    return finished, missing


def sources(finished: list[Folder], inputs: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Return the names of each folder's sources, keyed by the folder's name.

    Folder A is a source of folder B if the manifest of B contains a digest of A.

    Args:
      finished: the finished folders.
      inputs: the result of `digests` for each folder, keyed by folder name.
    """
    made_from = {folder.name: json.dumps(folder.manifest['made_from']) for folder in finished}
    return {
        name: [
            other for other, files in inputs.items() if other != name and any(each in text for each in files.values())
        ]
        for name, text in made_from.items()
    }


def upstream_first(finished: list[Folder], made_of: dict[str, list[str]]) -> list[Folder]:
    """Return the folders in pipeline order: each folder comes after the folders that it was made from.

    If several folders could come next, they are sorted by name.

    Args:
      finished: the finished folders.
      made_of: the result of `sources`.
    """
    sorter = graphlib.TopologicalSorter(made_of)
    sorter.prepare()
    names: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        names += ready
        sorter.done(*ready)
    return sorted(finished, key=lambda folder: names.index(folder.name))


def digests(folder: Folder) -> dict[str, str]:
    """Return the sha256 of a folder's record files and manifest, keyed by file name.

    The result also contains any other digests that identify the folder in later stages.
    """
    files = {name: file_digest(folder.path / name) for name in (*folder.stage.files, 'manifest.json')}
    return files | folder.stage.digests(folder.path)


def counted_on_disk(folder: Folder) -> Counter:
    """Count the items in a folder, including those that `forget` has removed since the stage ran.

    In an intact folder, each number equals the manifest's count of the same name, and the number named `KEPT` equals
    the sum of the manifest's counts of kept items.
    """
    counts, forgotten = Counter(), folder.forgotten
    for name, count in folder.stage.files.items():
        with open(folder.path / name, 'rb') as file:
            counts[count] += sum(1 for _ in file) + forgotten.get(name, 0)
    for count, number in folder.stage.contents(folder.path).items():
        counts[count] += number + forgotten.get(count, 0)
    return counts


def funnel(folder: Folder) -> list[dict[str, Any]]:
    """Return the counts of items read, kept and dropped in each step of a stage, and whether the counts add up.

    Dropped items are counted by reason. The counts add up if read = kept + dropped and if the folder contains as many
    items as were counted. `read` and `adds_up` are None for a step that does not count the items it reads.
    """
    counts = folder.manifest['counts']
    steps = [step for step in folder.stage.steps if not step.read or any(name in counts for name in step.read)]
    dropped = dropped_by_unit(steps, counts)
    kept = {name: number for name, number in counts.items() if is_kept(name)}
    stated = counts | {KEPT: sum(kept.values())}
    on_disk = all(stated.get(name, 0) == number for name, number in counted_on_disk(folder).items())
    entries = []
    for step in steps:
        read = sum(counts.get(name, 0) for name in step.read) if step.read else None
        adds_up = None if read is None else on_disk and read == stated[KEPT] + sum(dropped[step.unit].values())
        kept_of_step = {} if read is None else kept
        entries.append(dict(unit=step.unit, read=read, kept=kept_of_step, dropped=dropped[step.unit], adds_up=adds_up))
    return entries


def other_counts(folder: Folder) -> dict[str, int]:
    """Return the counts of items removed by `forget`, and all counts that `funnel` and `teacher_costs` do not use."""
    read = {name for step in folder.stage.steps for name in step.read}
    prefixes = ('teacher_', *(prefix for step in folder.stage.steps for prefix in step.dropped))
    counts = folder.manifest['counts'].items()
    forgotten = {f'forgotten since, of {name}': number for name, number in folder.forgotten.items()}
    return forgotten | {
        name: number
        for name, number in counts
        if name not in read and not name.startswith(prefixes) and not is_kept(name)
    }


def teacher_costs(finished: list[Folder]) -> dict[str, Any] | None:
    """Return the cost of a teacher behind an endpoint, as totals over all stages and as averages per pair.

    The cost is given in tokens and in millionths of the currency of `config.teacher.price_in`. A pair that occurs in
    several folders counts once. The result is None if no stage used such a teacher.
    """
    counts = [folder.manifest['counts'] for folder in finished]
    if not any('teacher_tokens_in' in stage_counts for stage_counts in counts):
        return None
    totals = {
        name: sum(stage_counts.get(f'teacher_{name}', 0) for stage_counts in counts)
        for name in ('tokens_in', 'tokens_out', 'cost_millionths')
    }
    pairs = len({pair['id'] for folder in finished if folder.kind == 'pairs' for pair in folder.records})
    per_pair = {name: total / pairs for name, total in totals.items()} if pairs else None
    return totals | dict(pairs=pairs, per_pair=per_pair)
