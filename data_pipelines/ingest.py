"""Turns raw conversations into checked records, one per conversation, grouped by user and split without leakage.

    python -m data_pipelines.ingest --config=configs/NAME.py

Reads `config.data.raw`, a comma-separated list of files, folders and Hugging Face hub data sets (hf://OWNER/NAME, see
`rlhi_jax/io/hub.py`). The files are JSON lines (.jsonl, .jsonl.gz) or parquet; `config.ingest.fields` says where to
find each field. The manifest records the commit that was read from the hub. A later commit counts as different input,
so pin the commit that you want: hf://OWNER/NAME@COMMIT.

Unusable records and duplicates are skipped and counted by reason. So are records that a longer record continues: in a
serving log, each call repeats the conversation so far (`data_pipelines/raw/selection.py`).

No two splits share a user or a cluster of conversations with near-duplicate openings (the first words of the first
message). The splits are chosen as follows:

- If at least two splits have files named after them (`validation.jsonl`, `test-00000-of-00002.parquet`), the file names
  determine the splits. In a folder with such files, the other files are counted but not read. If files are listed one
  by one, either all of them or none must be named after splits.
- Otherwise, clusters are drawn at random for the validation split.

At most `config.ingest.max_nearly_same` conversations with nearly the same opening are kept. This limit keeps a template
pasted by thousands of users from dominating the data.

The stage can handle millions of conversations on one machine. `data_pipelines.raw.scan` reads chunks of files in
parallel and writes each chunk's usable records to a part file. An interrupted run resumes without reading finished
chunks again. Every step that needs all conversations at once runs in DuckDB, which keeps on disk what does not fit in
memory. If `config.beam` is set, an Apache Beam pipeline reads the chunks instead, on many machines if you wish
(`data_pipelines/raw/beam.py`). The resulting records are byte-identical.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import contextlib
import dataclasses
import functools
import json
import os
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
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import Record
from data_pipelines.privacy.user_keys import make_salt, read_opt_out, read_salt
from data_pipelines.raw.files import BATCH, PATTERNS, TEXT, Files, files_of
from data_pipelines.raw.filters import Filters
from data_pipelines.raw.near_duplicates import banding
from data_pipelines.raw.scan import SCHEMA, Rules, chunks_of, file_split, part_counts, part_path, work
from data_pipelines.raw.selection import choose
from data_pipelines.reports.statistics import of_conversations
from rlhi_jax.config import listed
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, write_json
from rlhi_jax.io.hub import Snapshot, on_hub, snapshot
from rlhi_jax.io.progress import Progress

MEMORY = '256MB'  # for DuckDB's buffers; about 300,000 conversations fill them, and the rest is on disk
MAX_FILES = 500  # files open at once in the final sort
_POLL_SECONDS = 0.2


def raw_files(config: ConfigDict) -> list[Path]:
    """List the files to read for `config.data.raw`.

    If a folder contains files named after splits, only those files are listed.

    Raises:
      UserError: a path does not exist, contains no raw files, or cannot be fetched from the hub.
    """
    return _to_read(_files_by_name(config))


def _to_read(found: Sequence[Files]) -> list[Path]:
    """Return the files to read. In a folder that contains files named after splits, the other files are skipped."""
    return [path for each in found for path in ([*filter(file_split, each.files)] or each.files)]


def _files_by_name(config: ConfigDict) -> list[Files]:
    """Return all files for each name in `config.data.raw`."""
    return [files_of(name, 'config.data.raw') for name in listed(config, 'data.raw')]


def from_hub(name: str) -> Snapshot:
    """Return a snapshot of a hub data set listed in `config.data.raw`."""
    return snapshot(name, 'dataset', PATTERNS, 'config.data.raw')


@functools.cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """Return the digest of a file, cached so that an unchanged file is read only once per process."""
    return file_digest(path)


def _identity(config: ConfigDict) -> dict[str, Any]:
    files = [[path.name, _digest_of(path, path.stat().st_size, path.stat().st_mtime_ns)] for path in raw_files(config)]
    without = ('workers', 'salt', 'opt_out')  # they affect only speed, or are paths of files digested below
    settings = {name: value for name, value in config.ingest.to_dict().items() if name not in without}
    if config.ingest.salt:
        make_salt(config.ingest.salt, outside=Path(config.data.conversations).parent)
        settings['salted'] = digest(read_salt(config.ingest.salt))
    if commits := [from_hub(name).name for name in filter(on_hub, listed(config, 'data.raw'))]:
        settings['hub'] = commits
    if opted_out := read_opt_out(config.ingest.opt_out):
        settings['opted_out'] = digest(sorted(opted_out))
    return dict(inputs=files, settings=settings, seed=config.seed)


def _scan(task: Task, files: Sequence[Path]) -> list[Path]:
    """Write the missing part files to the task's work folder; return the paths of all part files, one per chunk."""
    config, all_chunks = task.config, chunks_of(files, task.config.data.raw)
    if config.beam and not find_spec('apache_beam'):
        raise UserError("config.beam is set, but apache-beam is not installed: run `pip install -e '.[beam]'`")
    job = dict(rules=dataclasses.asdict(rules_of(config)), chunks=[dataclasses.asdict(chunk) for chunk in all_chunks])
    folder = _parts_folder(work_folder(task.folder), digest(task.made_from, job, str(SCHEMA))[:16])
    workers = min(config.ingest.workers, len(all_chunks))
    write_json(folder / 'job.json', job | dict(workers=workers, beam=config.beam))
    parts = [part_path(folder, number) for number in range(len(all_chunks))]
    job_flag = f'--job={folder / "job.json"}'
    if config.beam:
        _work_side_by_side([['data_pipelines.raw.beam', job_flag]], parts)
    elif len(parts) == 1:
        work(folder / 'job.json', 0)
    else:
        scan = ['data_pipelines.raw.worker', job_flag]
        _work_side_by_side([[*scan, f'--worker={worker}'] for worker in range(workers)], parts)
    for chunk, part in zip(all_chunks, parts, strict=True):
        if part_counts(part)['files_broken_off']:
            print(f'config.data.raw: {chunk.path} is truncated or not gzip: fetch it again', file=sys.stderr)
    return parts


def rules_of(config: ConfigDict) -> Rules:
    """Return the rules that a config sets for parsing and filtering raw records."""
    i = config.ingest
    languages = tuple(filter(None, map(str.strip, i.languages.split(','))))
    others = {field.name: i[field.name] for field in dataclasses.fields(Filters) if field.name != 'languages'}
    return Rules(i.fields.to_dict(), Filters(languages=languages, **others), banding(i.similarity), i.salt, i.opt_out)


def _parts_folder(folder: Path, name: str) -> Path:
    """Create the folder for a job's part files in the work folder, and remove everything else from the work folder.

    Each job has its own folder, so that a worker that outlives a killed run cannot write to a later run's folder.
    """
    parts_folder = folder / name
    for other in folder.glob('*'):
        if other.is_file():
            other.unlink()
        elif other != parts_folder:
            shutil.rmtree(other)
    parts_folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return parts_folder


def _work_side_by_side(programs: list[list[str]], parts: list[Path]) -> None:
    """Run programs that write part files, all in parallel, and wait for them to finish.

    Raises:
      UserError: a program failed, after printing the reason to stderr.
    """
    missing = [part for part in parts if not part.exists()]
    with Progress('ingest', len(parts), unit='chunks', done=len(parts) - len(missing)) as progress:
        commands = [[sys.executable, '-m', *program, f'--parent={os.getpid()}'] for program in programs]
        running = [subprocess.Popen(command) for command in commands]
        statuses: list[int | None] = [None]
        try:
            while None in statuses:
                time.sleep(_POLL_SECONDS)
                statuses = [process.poll() for process in running]
                missing = [part for part in missing if not part.exists()]
                if missing:
                    progress.update(len(parts) - len(missing))
                if any(statuses) or (missing and None not in statuses):
                    raise UserError(
                        f'config.data.raw: a worker process failed (exit statuses: {statuses}): fix the error that it '
                        "printed above and rerun the 'ingest' stage"
                    )
            progress.update(len(parts))
        finally:
            for process in running:
                process.terminate()
                process.wait()


# The output is grouped by user, and each user's conversations are sorted by time.
_ORDER = """
CREATE TABLE ordered AS
  SELECT position, cluster, began, split, size,
    row_number() OVER (ORDER BY user_id = '', user_id, chosen.ended, position) - 1 AS output_index
  FROM chosen JOIN (SELECT position, user_id, size FROM parts) USING (position) ORDER BY position;
DROP TABLE chosen;
"""

# The columns of the part files that the output needs.
_COLUMNS = ['position', 'ended', 'id', 'language', 'messages', 'system', 'user_id']


def _work(task: Task) -> dict[str, int]:
    config = task.config
    found = _files_by_name(config)
    files = _to_read(found)
    parts = _scan(task, files)
    for each in found:
        each.say_what_is_not_read('config.data.raw')
    not_read = Counter(
        files_passed_over=sum(len(each.files) for each in found) - len(files),
        files_of_other_kinds=sum(len(each.others) for each in found),
    )
    counts = sum(map(part_counts, parts), not_read)
    with duckdb.connect() as base:
        base.execute(f'SET threads = {config.ingest.workers}')
        base.execute('SET memory_limit = ?', [MEMORY])
        base.execute('SET temp_directory = ?', [str(parts[0].parent / 'spilled')])
        choose(base, config, parts[0].parent, counts)
        grouped = _group(base, parts)
    return task.write(_records(grouped), counts)


def _group(base: duckdb.DuckDBPyConnection, parts: list[Path]) -> list[Path]:
    """Write the chosen records to files that each fit in memory, and return the files' paths.

    Each file contains one section of the output. DuckDB sorts only the positions of the records, because sorting long
    texts would need a lot of memory.
    """
    base.execute(_ORDER)
    sizes = base.execute('SELECT size FROM ordered ORDER BY output_index').fetchnumpy()['size']
    total = int(sizes.sum())
    files = min(total // TEXT + 1, MAX_FILES)
    folder = parts[0].parent / 'grouped'
    folder.mkdir(exist_ok=True)
    paths = [folder / f'{number:04}.arrow' for number in range(files)]
    # The output index at which each file begins, and the index at which the last file ends.
    borders = np.searchsorted(np.cumsum(sizes) - sizes, [total * number // files for number in range(files + 1)])
    with contextlib.ExitStack() as stack, Progress('ingest', len(parts), unit='parts grouped') as progress:
        schema = _chosen_rows(base, SCHEMA.empty_table().select(_COLUMNS)).schema
        writers = [stack.enter_context(pa.ipc.new_stream(path, schema)) for path in paths]
        for table in _chosen_tables(base, parts, progress):
            table = table.sort_by('output_index')
            starts = np.searchsorted(table['output_index'].to_numpy(), borders)
            for writer, start, end in zip(writers, starts, starts[1:], strict=False):
                if start < end:
                    writer.write_table(table.slice(start, end - start))
    return paths


def _chosen_tables(base: duckdb.DuckDBPyConnection, parts: list[Path], progress: Progress) -> Iterator[pa.Table]:
    """Yield the chosen records of all part files, in tables that fit in memory."""
    tables: list[pa.Table] = []
    for number, part in enumerate(parts, start=1):
        with pyarrow.parquet.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                tables.append(_chosen_rows(base, file.read_row_group(group, columns=_COLUMNS, use_threads=False)))
                if sum(table.nbytes for table in tables) > TEXT:
                    yield pa.concat_tables(tables)
                    tables = []
        progress.update(number)
    if tables:
        yield pa.concat_tables(tables)


def _chosen_rows(base: duckdb.DuckDBPyConnection, rows: pa.Table) -> pa.Table:
    """Return the chosen rows, with the other columns of the table `ordered` in place of the column `position`."""
    ends = pyarrow.compute.min_max(rows['position']).as_py()
    query = """
        SELECT position, output_index, began, cluster, split FROM ordered
        WHERE position BETWEEN $min AND $max ORDER BY position
    """
    order = base.sql(query, params=ends).to_arrow_table()
    is_chosen = pyarrow.compute.is_in(rows['position'], order['position'].combine_chunks())
    chosen, order = rows.filter(is_chosen).drop_columns('position'), order.drop_columns('position')  # in the same order
    return pa.table([*chosen.columns, *order.columns], [*chosen.column_names, *order.column_names])


def _records(paths: list[Path]) -> Iterator[Record]:
    """Yield the output records from the grouped files."""
    for path in paths:
        with pa.ipc.open_stream(path) as stream:
            table = stream.read_all().sort_by('output_index').drop_columns('output_index')
        for batch in table.to_batches(max_chunksize=BATCH):
            for record in batch.to_pylist():
                yield record | {'messages': json.loads(record['messages'])}


STAGE = Stage(
    name='ingest',
    version=3,
    work=_work,
    output='data.conversations',
    identity=_identity,
    files={RECORDS: KEPT},
    steps=(Step('records', ('records_read',)),),
    shown=('users',),
    summary=of_conversations,
)

if __name__ == '__main__':
    STAGE.main()
