"""Raw conversations → one checked record a conversation, grouped by user and split without leaks.

    python -m data_pipelines.ingest --config=configs/NAME.py

Reads `config.data.raw`: files, folders or data sets of the Hugging Face hub (hf://OWNER/NAME, see `rlhi_jax/hub.py`),
joined by commas; JSON lines (.jsonl, .jsonl.gz) or parquet, whose fields `config.ingest.fields` finds. The manifest
names the commit that was read. A later one is other input, so name it, hf://OWNER/NAME@COMMIT, for runs to come.

Records that cannot be used are skipped and counted by reason; so are those said before, and those that go on in another
record, as each call of a serving log repeats what was said before it. A split holds whole users and whole clusters of
near-duplicate openings: no user and no request lies on both sides. Files named train, gate and test (at least two of
them) are the splits; else clusters are drawn for them. Of openings that are nearly the same, as of a template that
thousands paste, `config.ingest.max_nearly_same` are kept.

Made for millions of conversations on one machine: `scan` reads chunks of files side by side and keeps what is done;
what needs all conversations at once is left to DuckDB, which works on disk. With `config.beam` chunks are read by
a Beam pipeline, on many machines if it says so (see `data_pipelines/beam.py`): the same records, byte for byte.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipelines.filters import Filters
from data_pipelines.journal import work_folder
from data_pipelines.near_duplicates import banding
from data_pipelines.scan import BATCH, CHUNK, Rules, chunks, part_counts, part_path, places, work
from data_pipelines.stage import Record, Stage, Task
from data_pipelines.users import make_salt, read_opt_out, read_salt
from rlhi_jax.config import require
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest, write_json
from rlhi_jax.hub import Snapshot, on_hub, snapshot
from rlhi_jax.progress import Progress

READ = ('*.jsonl', '*.jsonl.gz', '*.parquet')
FILE_SPLITS = {'train': 'train', 'gate': 'heldout', 'test': 'test'}  # the least to the most held out
MEMORY = '256MB'  # of DuckDB: its buffers fill that much of some 300,000 conversations; the rest is on disk
NEIGHBOURS, MAX_FILES = 5000, 500  # records of a file in the final sort, and how many files are open at most
EDGES = 2**18  # in memory at once
_POLL_SECONDS = 0.2


def raw_files(config: ConfigDict) -> list[Path]:
    """The files that `config.data.raw` names; of a folder and those in it, those named by split, or else all there are.

    Raises:
      UserError: a path does not exist or holds no conversations, or cannot be fetched from the hub.
    """
    require(config, 'data.raw')
    files: list[Path] = []
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
        files += [each for each in found if file_split(each)] or found
    return files


def _is_raw(place: Path) -> bool:
    """Whether a file of a folder is read; hidden ones are not."""
    return any(map(place.match, READ)) and not any(part.startswith('.') for part in place.parts)


def from_hub(name: str) -> Snapshot:
    """What `config.data.raw` names on the hub."""
    return snapshot(name, 'dataset', READ, 'config.data.raw')


def file_split(path: Path) -> str:
    """The split that a file is named by, as `test.jsonl.gz` is; '' for any other name."""
    return FILE_SPLITS.get(path.name.split('.')[0], '')


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
    by_file = '' not in map(file_split, files) and len(set(map(file_split, files))) > 1
    found = [chunk for path in files for chunk in chunks(path, file_split(path) if by_file else '')]
    if not found:
        raise UserError(f'config.data.raw: {config.data.raw} holds no record')
    i = config.ingest
    if config.beam and not find_spec('apache_beam'):
        raise UserError('config.beam: apache-beam is not installed: pip install -e .[beam]')
    languages = tuple(filter(None, i.languages.split(',')))
    others = {field.name: i[field.name] for field in dataclasses.fields(Filters) if field.name != 'languages'}
    rules = Rules(i.fields.to_dict(), Filters(languages=languages, **others), banding(i.similarity), i.salt, i.opt_out)
    job = dict(rules=dataclasses.asdict(rules), chunks=[dataclasses.asdict(each) for each in found])
    # A worker that outlives a killed run writes to that run's folder, or to none.
    own = folder / digest(task.identity, job)[:16]
    for other in folder.glob('*'):
        if other != own:
            shutil.rmtree(other)
    own.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    workers = min(i.workers, len(found))
    write_json(own / 'job.json', job | dict(workers=workers, beam=config.beam))
    parts = [part_path(own, number) for number in range(len(found))]
    if config.beam:
        _work_side_by_side([['data_pipelines.beam', f'--job={own / "job.json"}']], parts)
    elif len(parts) == 1:
        work(own / 'job.json', 0)
    else:
        scan = ['data_pipelines.scan', f'--job={own / "job.json"}']
        _work_side_by_side([[*scan, f'--worker={worker}'] for worker in range(workers)], parts)
    return parts


def _work_side_by_side(programs: list[list[str]], parts: list[Path]) -> None:
    """Run programs that write parts, until they end."""
    missing = [part for part in parts if not part.exists()]
    with Progress('ingest', len(parts), unit='chunks', done=len(parts) - len(missing)) as progress:
        running = [subprocess.Popen([sys.executable, '-m', *program]) for program in programs]
        ended: list[int | None] = [None]
        try:
            while None in ended:
                time.sleep(_POLL_SECONDS)
                ended = [process.poll() for process in running]
                missing = [part for part in missing if not part.exists()]
                if missing:
                    progress.update(len(parts) - len(missing))
                if any(ended) or (missing and None not in ended):
                    raise RuntimeError(f'a worker of the scan failed (exit status {ended}): see what it wrote above')
            progress.update(len(parts))
        finally:
            for process in running:
                process.terminate()
                process.wait()


# What is kept: of each id the first record, of what was said before the first, and of what goes on the last. When that
# began an earlier record says, if it is of the first exchange alone.
_KEPT = """
CREATE VIEW parts AS SELECT * FROM read_parquet('{parts}/*.parquet');
CREATE TABLE named AS SELECT min(place) AS place FROM parts GROUP BY named;
CREATE TABLE once AS SELECT min(place) AS place FROM parts SEMI JOIN named USING (place) GROUP BY said;
CREATE TABLE going_on AS
  SELECT short.place, short.ended, short.turns, long.place AS in_place
  FROM (SELECT place, said, ended, turns FROM parts SEMI JOIN once USING (place)) AS short
  JOIN (SELECT place, unnest(earlier) AS said FROM parts SEMI JOIN once USING (place)) AS long USING (said);
CREATE TABLE began AS
  SELECT in_place AS place, min(ended) AS began FROM going_on WHERE ended <> '' AND turns = 2 GROUP BY in_place;
CREATE TABLE kept AS
  SELECT row_number() OVER (ORDER BY place) - 1 AS number, place, named, person, opted_out, ended, turns,
    CASE WHEN parts.began <> '' THEN parts.began
      WHEN began.began IS NOT NULL THEN began.began
      WHEN turns = 2 THEN ended ELSE '' END AS began,
    system <> '' AS with_system,
    list_position({splits}, split) AS rank
  FROM parts SEMI JOIN once USING (place) ANTI JOIN going_on USING (place) LEFT JOIN began USING (place);
"""

# Who is alike: all that share a band with the first that has it, all of a user with the user's first.
_ALIKE = """
CREATE TABLE banded AS SELECT number, rank, unnest(bands) AS band FROM parts JOIN kept USING (place);
CREATE TABLE shared AS
  SELECT band, min(number) AS first, max(rank) AS rank, count(*) AS size FROM banded GROUP BY band HAVING size > 1;
CREATE TABLE users AS
  SELECT person, min(number) AS first, max(rank) AS rank FROM kept WHERE person <> 0 GROUP BY person;
CREATE TABLE alike AS SELECT DISTINCT * FROM (
  SELECT number, banded.rank < shared.rank AS leaks, first FROM banded JOIN shared USING (band)
  UNION ALL SELECT number, kept.rank < users.rank, first FROM kept JOIN users USING (person));
"""

# A cluster is named by a digest: the id that it is of may be of a user who has opted out. One that is larger than all
# that is to be held out, as common openings make it of many users, is trained on.
_SPLIT = """
CREATE TABLE clusters AS
  SELECT component, cluster, size,
    CASE WHEN share(cluster) < {heldout} AND size <= {most} THEN 'heldout' ELSE 'train' END AS drawn
  FROM (SELECT component, printf('%016x', min(named)) AS cluster, count(*) AS size
    FROM kept JOIN components USING (number) GROUP BY component);
CREATE TABLE chosen AS
  SELECT kept.*, cluster, CASE WHEN rank > 1 THEN list_extract({splits}, rank) ELSE drawn END AS split
  FROM kept JOIN components USING (number) JOIN clusters USING (component)
  WHERE number NOT IN (SELECT number FROM alike WHERE leaks);
"""

# Which are too many. Those that share a band open nearly the same, whoever they are of, and lie in one split by now.
# Kept are the first by hash, not those of the file; what shares no band with so many others is never too much.
_CROWDED = """
CREATE TABLE crowds AS
  SELECT number, named, band FROM banded JOIN shared USING (band) JOIN chosen USING (number) WHERE size > {most};
CREATE TABLE crowded AS SELECT DISTINCT number FROM (
  SELECT number FROM crowds QUALIFY row_number() OVER (PARTITION BY band ORDER BY named) > {most});
DROP TABLE crowds;
"""

# Where each record goes: users one after another, their conversations in the order of time.
_ORDER = """
CREATE TABLE ordered AS
  SELECT place, cluster, began, split,
    row_number() OVER (ORDER BY user_id = '', user_id, chosen.ended, place) - 1 AS number
  FROM chosen JOIN (SELECT place, user_id FROM parts) USING (place) ORDER BY place;
DROP TABLE named; DROP TABLE once; DROP TABLE going_on; DROP TABLE began; DROP TABLE kept; DROP TABLE banded;
DROP TABLE shared; DROP TABLE users; DROP TABLE alike; DROP TABLE clusters; DROP TABLE chosen;
DROP TABLE IF EXISTS crowded;
"""

_OF_PART = """
SELECT number, ordered.began, cluster, ended, id, language, messages, ordered.split, system, user_id
FROM read_parquet(?) JOIN ordered USING (place)
WHERE place BETWEEN ? AND ?
"""


def _work(task: Task) -> dict[str, int]:
    config = task.config
    parts = _scan(task)
    counts = sum(map(part_counts, parts), Counter())
    with duckdb.connect() as base:
        base.execute(f'SET threads = {config.ingest.workers}')
        base.execute('SET memory_limit = ?', [MEMORY])
        base.execute('SET temp_directory = ?', [str(parts[0].parent / 'spilled')])
        _choose(base, config, parts[0].parent, counts)
        grouped = _deal_out(base, parts)
    return STAGE.write(task, _records(grouped), counts)


def _choose(base: duckdb.DuckDBPyConnection, config: ConfigDict, parts: Path, counts: Counter) -> None:
    """The table `chosen`: conversations that are kept, with their split and cluster; counts what is not."""

    def number(query: str) -> int:
        return int(base.execute(query).fetchall()[0][0] or 0)

    def drop(reason: str, how_many: int) -> None:
        if how_many:
            counts[f'dropped_{reason}'] = how_many

    def cut(reason: str, rest: str) -> None:
        drop(reason, number(f'DELETE FROM chosen WHERE number IN ({rest})'))

    splits, share = ['', *FILE_SPLITS.values()], config.ingest.heldout  # in SQL too, a list of text
    base.create_function('share', lambda name: int(digest(config.seed, name)[:8], 16) / 16**8, ['VARCHAR'], 'DOUBLE')
    base.execute(_KEPT.format(parts=str(parts).replace("'", "''"), splits=splits))
    kept = number('SELECT count(*) FROM kept')
    if not kept:
        raise UserError(f'config.data.raw: no usable conversation in {config.data.raw} (counts: {dict(counts)})')
    once = number('SELECT count(*) FROM once')
    drop('seen_before', number('SELECT count(*) FROM parts') - once)
    drop('goes_on_in_another', once - kept)
    base.execute(_ALIKE)
    edges = base.sql('SELECT number, first FROM alike WHERE number <> first').to_arrow_reader(EDGES)
    base.register('components', _components(kept, edges))
    base.execute(_SPLIT.format(heldout=share, most=max(share * kept, 1), splits=splits))
    counts['clusters'] = number('SELECT count(*) FROM clusters')
    counts['in_clusters_of_several'] = number('SELECT sum(size) FROM clusters WHERE size > 1')
    drop('like_one_held_out', kept - number('SELECT count(*) FROM chosen'))
    if most := config.ingest.max_nearly_same:
        base.execute(_CROWDED.format(most=most))
        cut('nearly_the_same', 'FROM crowded')
    if most := config.ingest.max_per_user:
        newest = 'row_number() OVER (PARTITION BY person ORDER BY ended DESC, number DESC)'
        cut('over_max_per_user', f'SELECT number FROM chosen WHERE person <> 0 QUALIFY {newest} > {most}')
    if most := config.ingest.max_conversations:
        cut('over_max_conversations', f'SELECT number FROM chosen ORDER BY named, number OFFSET {most}')
    cut('opted_out', 'SELECT number FROM chosen WHERE opted_out')  # last: nobody else's fate hangs on it
    for split, size in base.execute('SELECT split, count(*) FROM chosen GROUP BY split').fetchall():
        counts[f'kept_{split}'] = size
    counts['without_time'] = number("SELECT count(*) FROM chosen WHERE began = ''")
    counts['with_system_message'] = number('SELECT count(*) FROM chosen WHERE with_system')
    counts['users'] = number('SELECT count(DISTINCT person) FROM chosen WHERE person <> 0')
    counts['user_turns'] = number('SELECT sum((turns + 1) // 2) FROM chosen')


def _components(count: int, edges: Iterable[pa.RecordBatch]) -> pa.Table:
    """The component of each of `count` conversations: those that are alike, directly or through others.

    Of the edges only a batch is in memory at once: it joins components that those before have left.
    """
    component = np.arange(count, dtype=np.int32)
    for batch in edges:
        ends = np.stack([component[batch[place].to_numpy()] for place in range(2)])
        nodes, (left, right) = np.unique(ends, return_inverse=True)
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), (len(nodes), len(nodes)))
        joined = connected_components(graph, directed=False)[1]
        first = np.unique(joined, return_index=True)[1]
        new = np.arange(count, dtype=np.int32)
        new[nodes] = nodes[first[joined]]
        component = new[component]
    return pa.table(dict(number=np.arange(count, dtype=np.int32), component=component))


def _deal_out(base: duckdb.DuckDBPyConnection, parts: list[Path]) -> list[Path]:
    """The chosen records in files of neighbours in their order, each of which fits in memory.

    DuckDB sorts their numbers; rows as wide as conversations it cannot sort in little memory.
    """
    base.execute(_ORDER)
    count = base.execute('SELECT count(*) FROM ordered').fetchall()[0][0]
    files = min(count // NEIGHBOURS + 1, MAX_FILES)
    folder = parts[0].parent / 'grouped'
    folder.mkdir(exist_ok=True)
    paths = [folder / f'{number:04}.arrow' for number in range(files)]
    firsts = [-(-count * at // files) for at in range(files + 1)]
    with contextlib.ExitStack() as stack, Progress('ingest', len(parts), unit='parts grouped') as progress:
        schema = base.sql(_OF_PART, params=[str(parts[0]), 0, -1]).to_arrow_reader().schema
        writers = [stack.enter_context(pa.ipc.new_stream(path, schema)) for path in paths]
        for table in _together(base, parts, progress):
            table = table.sort_by('number')
            starts = np.searchsorted(table['number'].to_numpy(), firsts)
            for writer, start, end in zip(writers, starts, starts[1:], strict=False):
                if start < end:
                    writer.write_table(table.slice(start, end - start))
    return paths


def _together(base: duckdb.DuckDBPyConnection, parts: list[Path], progress: Progress) -> Iterator[pa.Table]:
    """The chosen records of parts, as many at once as make a chunk of text."""
    batches: list[pa.RecordBatch] = []
    for number, part in enumerate(parts):
        for batch in base.sql(_OF_PART, params=[str(part), *places(number)]).to_arrow_reader(BATCH):
            batches.append(batch)
            if sum(batch.nbytes for batch in batches) > CHUNK:
                yield pa.Table.from_batches(batches)
                batches = []
        progress.update(number + 1)
    if batches:
        yield pa.Table.from_batches(batches)


def _records(paths: list[Path]) -> Iterator[Record]:
    """The records of files of neighbours, in order."""
    for path in paths:
        with pa.ipc.open_stream(path) as stream:
            table = stream.read_all().sort_by('number').drop_columns('number')
        for batch in table.to_batches(max_chunksize=BATCH):
            for record in batch.to_pylist():
                yield record | {'messages': json.loads(record['messages'])}


STAGE = Stage('ingest', _work, 'data.conversations', _identity)

if __name__ == '__main__':
    STAGE.main()
