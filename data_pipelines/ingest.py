"""Raw conversations → one checked record a conversation, grouped by user and split without leaks.

    python -m data_pipelines.ingest --config=configs/NAME.py

Reads `config.data.raw`: files, folders or data sets of the Hugging Face hub (hf://OWNER/NAME, `rlhi_jax/io/hub.py`),
joined by commas; JSON lines (.jsonl, .jsonl.gz) or parquet, whose fields `config.ingest.fields` finds. The manifest
names the commit that was read. A later one is other input, so name it, hf://OWNER/NAME@COMMIT, for runs to come.

Records that cannot be used are skipped and counted by reason; so are those said before, those that go on in another
record, as each call of a serving log repeats what was said before it, and different ones under one id but the longest
(`data_pipelines/raw/selection.py`). A split holds whole users and whole clusters of near-duplicate openings: no user
and no request lies on both sides. Files named train, gate and test (at least two of them; `test-00000-of-00002.parquet`
too) are the splits; else clusters are drawn for them. In a folder that has a file so named the others are not read, but
counted; files that are given one by one are named so all, or none. Of openings that are nearly the same, as of a
template that thousands paste, `config.ingest.max_nearly_same` are kept.

Made for millions of conversations on one machine: `scan` reads chunks of files side by side and keeps what is done;
what needs all conversations at once is left to DuckDB, which works on disk. With `config.beam` chunks are read by
a Beam pipeline, on many machines if it says so (see `data_pipelines/raw/beam.py`): the same records, byte for byte.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from ml_collections import ConfigDict

from data_pipelines.core.journal import work_folder
from data_pipelines.core.stage import Record, Stage, Task
from data_pipelines.privacy.user_keys import make_salt, read_opt_out, read_salt
from data_pipelines.raw.filters import Filters
from data_pipelines.raw.near_duplicates import banding
from data_pipelines.raw.scan import BATCH, SCHEMA, TEXT, Rules, chunks, part_counts, part_path, work
from data_pipelines.raw.selection import FILE_SPLITS, choose
from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, write_json
from rlhi_jax.io.hub import Snapshot, on_hub, snapshot
from rlhi_jax.io.progress import Progress

READ = ('*.jsonl', '*.jsonl.gz', '*.parquet')
MEMORY = '256MB'  # of DuckDB: its buffers fill that much of some 300,000 conversations; the rest is on disk
MAX_FILES = 500  # open at once in the final sort
_POLL_SECONDS = 0.2


def raw_files(config: ConfigDict) -> list[Path]:
    """The files that `config.data.raw` names; of a folder and those in it, those named by split, or else all there are.

    Raises:
      UserError: a path does not exist or holds no conversations, or cannot be fetched from the hub.
    """
    return [path for found in _found(config) for path in _read_of(found)]


def _read_of(found: Sequence[Path]) -> Sequence[Path]:
    return [*filter(file_split, found)] or found


def _passed_over(config: ConfigDict) -> int:
    """How many files are not read, because others of their folder are named by split."""
    return sum(len(found) - len(_read_of(found)) for found in _found(config))


def _found(config: ConfigDict) -> list[Sequence[Path]]:
    """All files of conversations, those of each name in `config.data.raw` together."""
    require(config, 'data.raw')
    files: list[Sequence[Path]] = []
    for name in config.data.raw.split(','):
        path = Path(name)
        if on_hub(name):
            found = from_hub(name).files
        elif path.is_dir():
            found = sorted(each for each in path.rglob('*') if _is_raw(each.relative_to(path)) and each.is_file())
        else:
            found = [path]
        if not found or not all(each.is_file() for each in found):
            raise UserError(f'config.data.raw: {path} does not exist, or holds no .jsonl, .jsonl.gz or .parquet file')
        files.append(found)
    return files


def _is_raw(place: Path) -> bool:
    """Whether a file of a folder is read; hidden ones are not."""
    return any(map(place.match, READ)) and not any(part.startswith('.') for part in place.parts)


def from_hub(name: str) -> Snapshot:
    """What `config.data.raw` names on the hub."""
    return snapshot(name, 'dataset', READ, 'config.data.raw')


def file_split(path: Path) -> str:
    """The split that a file is named by, as `test.jsonl.gz` and `test-00000-of-00002.parquet` are; '' for another."""
    return FILE_SPLITS.get(re.split(r'[.-]', path.name)[0], '')


@functools.cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """The digest of a file: large, so read once a process, as long as it is the same."""
    return file_digest(path)


def _identity(config: ConfigDict) -> dict[str, Any]:
    files = [[path.name, _digest_of(path, path.stat().st_size, path.stat().st_mtime_ns)] for path in raw_files(config)]
    others = ('workers', 'salt', 'opt_out')
    settings = {name: value for name, value in config.ingest.to_dict().items() if name not in others}
    if config.ingest.salt:
        make_salt(config.ingest.salt, outside=Path(config.data.conversations).parent)
        settings['salted'] = digest(read_salt(config.ingest.salt))
    if commits := [from_hub(name).name for name in filter(on_hub, config.data.raw.split(','))]:
        settings['hub'] = commits
    if opted_out := read_opt_out(config.ingest.opt_out):
        settings['opted_out'] = digest(sorted(opted_out))
    return dict(inputs=files, settings=settings, seed=config.seed)


def _scan(task: Task) -> list[Path]:
    """Write the parts of all raw files below the task's folder of work, those that are not there yet."""
    config, folder = task.config, work_folder(task.folder)
    files = raw_files(config)
    by_split = {file_split(path): path for path in files}
    if unnamed := len(by_split) > 1 and by_split.pop('', None):
        raise UserError(
            f'config.data.raw: {next(iter(by_split.values()))} is named as a split is, and {unnamed} is not: name all '
            'files so, or none'
        )
    found = [chunk for path in files for chunk in chunks(path, file_split(path) if len(by_split) > 1 else '')]
    if not found:
        raise UserError(f'config.data.raw: {config.data.raw} holds no record: fetch it again, or name files that do')
    i = config.ingest
    if config.beam and not find_spec('apache_beam'):
        raise UserError('config.beam: apache-beam is not installed: pip install -e .[beam]')
    languages = tuple(filter(None, map(str.strip, i.languages.split(','))))
    others = {field.name: i[field.name] for field in dataclasses.fields(Filters) if field.name != 'languages'}
    rules = Rules(i.fields.to_dict(), Filters(languages=languages, **others), banding(i.similarity), i.salt, i.opt_out)
    job = dict(rules=dataclasses.asdict(rules), chunks=[dataclasses.asdict(each) for each in found])
    # A worker that outlives a killed run writes to that run's folder, or to none.
    own = folder / digest(task.identity, job, str(SCHEMA))[:16]
    for other in folder.glob('*'):
        if other.is_file():
            other.unlink()
        elif other != own:
            shutil.rmtree(other)
    own.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    workers = min(i.workers, len(found))
    write_json(own / 'job.json', job | dict(workers=workers, beam=config.beam))
    parts = [part_path(own, number) for number in range(len(found))]
    if config.beam:
        _work_side_by_side([['data_pipelines.raw.beam', f'--job={own / "job.json"}']], parts)
    elif len(parts) == 1:
        work(own / 'job.json', 0)
    else:
        scan = ['data_pipelines.raw.scan', f'--job={own / "job.json"}']
        _work_side_by_side([[*scan, f'--worker={worker}'] for worker in range(workers)], parts)
    for chunk, part in zip(found, parts, strict=True):
        if part_counts(part)['files_broken_off']:
            print(f'config.data.raw: {chunk.path} breaks off, or is no gzip: fetch it again', file=sys.stderr)
    return parts


def _work_side_by_side(programs: list[list[str]], parts: list[Path]) -> None:
    """Run programs that write parts, until they end.

    Raises:
      UserError: one has failed, and has written why.
    """
    missing = [part for part in parts if not part.exists()]
    with Progress('ingest', len(parts), unit='chunks', done=len(parts) - len(missing)) as progress:
        started = [[sys.executable, '-m', *program, f'--parent={os.getpid()}'] for program in programs]
        running = [subprocess.Popen(command) for command in started]
        ended: list[int | None] = [None]
        try:
            while None in ended:
                time.sleep(_POLL_SECONDS)
                ended = [process.poll() for process in running]
                missing = [part for part in missing if not part.exists()]
                if missing:
                    progress.update(len(parts) - len(missing))
                if any(ended) or (missing and None not in ended):
                    raise UserError(f'config.data.raw: a worker failed (exit status {ended}): see what it wrote above')
            progress.update(len(parts))
        finally:
            for process in running:
                process.terminate()
                process.wait()


# Where each record goes: users one after another, their conversations in the order of time.
_ORDER = """
CREATE TABLE ordered AS
  SELECT place, cluster, began, split, size,
    row_number() OVER (ORDER BY user_id = '', user_id, chosen.ended, place) - 1 AS number
  FROM chosen JOIN (SELECT place, user_id, size FROM parts) USING (place) ORDER BY place;
DROP TABLE chosen;
"""

_TOLD = ['place', 'ended', 'id', 'language', 'messages', 'system', 'user_id']  # of a record, by its part


def _work(task: Task) -> dict[str, int]:
    config = task.config
    parts = _scan(task)
    counts = sum(map(part_counts, parts), Counter(files_passed_over=_passed_over(config)))
    with duckdb.connect() as base:
        base.execute(f'SET threads = {config.ingest.workers}')
        base.execute('SET memory_limit = ?', [MEMORY])
        base.execute('SET temp_directory = ?', [str(parts[0].parent / 'spilled')])
        choose(base, config, parts[0].parent, counts)
        grouped = _deal_out(base, parts)
    return task.write(_records(grouped), counts)


def _deal_out(base: duckdb.DuckDBPyConnection, parts: list[Path]) -> list[Path]:
    """The chosen records in files of neighbours in their order, each of which fits in memory.

    DuckDB sorts their numbers; what was said is not for it, as it needs much memory for long text.
    """
    base.execute(_ORDER)
    sizes = base.execute('SELECT size FROM ordered ORDER BY number').fetchnumpy()['size']
    total = int(sizes.sum())
    files = min(total // TEXT + 1, MAX_FILES)
    folder = parts[0].parent / 'grouped'
    folder.mkdir(exist_ok=True)
    paths = [folder / f'{number:04}.arrow' for number in range(files)]
    firsts = np.searchsorted(np.cumsum(sizes) - sizes, [total * at // files for at in range(files + 1)])
    with contextlib.ExitStack() as stack, Progress('ingest', len(parts), unit='parts grouped') as progress:
        schema = _chosen_of(base, SCHEMA.empty_table().select(_TOLD)).schema
        writers = [stack.enter_context(pa.ipc.new_stream(path, schema)) for path in paths]
        for table in _together(base, parts, progress):
            table = table.sort_by('number')
            starts = np.searchsorted(table['number'].to_numpy(), firsts)
            for writer, start, end in zip(writers, starts, starts[1:], strict=False):
                if start < end:
                    writer.write_table(table.slice(start, end - start))
    return paths


def _together(base: duckdb.DuckDBPyConnection, parts: list[Path], progress: Progress) -> Iterator[pa.Table]:
    """The chosen records of parts, as many at once as are for memory."""
    tables: list[pa.Table] = []
    for number, part in enumerate(parts, start=1):
        with pyarrow.parquet.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                tables.append(_chosen_of(base, file.read_row_group(group, columns=_TOLD, use_threads=False)))
                if sum(table.nbytes for table in tables) > TEXT:
                    yield pa.concat_tables(tables)
                    tables = []
        progress.update(number)
    if tables:
        yield pa.concat_tables(tables)


def _chosen_of(base: duckdb.DuckDBPyConnection, rows: pa.Table) -> pa.Table:
    """Those of rows of a part that are chosen, and where they go."""
    ends = pyarrow.compute.min_max(rows['place']).as_py()
    query = 'SELECT place, number, began, cluster, split FROM ordered WHERE place BETWEEN $min AND $max ORDER BY place'
    places = base.sql(query, params=ends).to_arrow_table()
    chosen = rows.filter(pyarrow.compute.is_in(rows['place'], places['place'].combine_chunks())).drop_columns('place')
    places = places.drop_columns('place')  # both are in its order
    return pa.table([*chosen.columns, *places.columns], [*chosen.column_names, *places.column_names])


def _records(paths: list[Path]) -> Iterator[Record]:
    """The records of files of neighbours, in order."""
    for path in paths:
        with pa.ipc.open_stream(path) as stream:
            table = stream.read_all().sort_by('number').drop_columns('number')
        for batch in table.to_batches(max_chunksize=BATCH):
            for record in batch.to_pylist():
                yield record | {'messages': json.loads(record['messages'])}


STAGE = Stage('ingest', 1, _work, 'data.conversations', _identity)

if __name__ == '__main__':
    STAGE.main()
