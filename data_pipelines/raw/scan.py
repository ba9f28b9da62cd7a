"""The first pass of ingest: raw files, a chunk at a time → parts, tables of what each usable record says.

    python -m data_pipelines.raw.scan --job=FILE --worker=0 --parent=PID  # by the stage `ingest`, one process a worker

A chunk is a range of a file, so that many processes read at once and a killed run goes on after the last whole part.
A part's bytes depend on its chunk and the rules alone. Of users who have opted out it holds hashes, numbers and times,
so that they can be left out without a change for anybody else.
"""

import dataclasses
import functools
import gzip
import json
import os
import sys
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_pipelines.privacy.user_keys import read_opt_out, read_salt
from data_pipelines.raw.filters import Filters, scrub
from data_pipelines.raw.formats import conversation, paths_read
from data_pipelines.raw.near_duplicates import bands
from rlhi_jax.cli.program import refuse
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest

CHUNK = 32 * 2**20  # bytes of JSON lines
BATCH, TEXT = 500, 16 * 2**20  # records in memory at once, and bytes of their text
_FIRST = 2**32  # a record's place: chunk × this + its number in the chunk
_UNREADABLE = (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError)  # what a file that is damaged raises
_WATCH_SECONDS = 0.5

SCHEMA = pa.schema(
    dict(
        place=pa.int64(),
        named=pa.uint64(),  # the id, as a hash
        person=pa.uint64(),  # the user, as a hash; 0 for none
        opted_out=pa.bool_(),  # then all text is empty
        size=pa.int64(),  # bytes of text
        with_system=pa.bool_(),
        id=pa.string(),
        user_id=pa.string(),
        began=pa.string(),
        ended=pa.string(),
        language=pa.string(),
        split=pa.string(),
        system=pa.string(),
        messages=pa.large_string(),  # JSON; many in one table may be more than 2 GB
        turns=pa.int32(),
        said=pa.uint64(),  # who said what
        earlier=pa.list_(pa.uint64()),  # the same after each reply before the last
        bands=pa.list_(pa.uint64()),  # of the opening
    )
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is read and kept.

    Attributes:
      fields: paths of a record's fields, `config.ingest.fields`.
      filters: what is kept of it.
      banding: number and width of the bands of openings.
      salt: file of the salt of users' keys; '' for ids as they are.
      opt_out: file of the users of whom nothing is kept; '' for none.
    """

    fields: dict[str, str]
    filters: Filters
    banding: Sequence[int]
    salt: str
    opt_out: str = ''

    @functools.cached_property  # a worker reads many chunks
    def users_salt(self) -> bytes:
        return read_salt(self.salt)

    @functools.cached_property
    def opted_out(self) -> frozenset[str]:
        return read_opt_out(self.opt_out)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Part of a file, from `first` to `last`: a row group of parquet, bytes of JSON lines, or a whole .gz file."""

    path: str
    split: str
    first: int
    last: int


def chunks(path: Path, split: str) -> list[Chunk]:
    """The chunks of a file.

    Raises:
      UserError: it is called parquet and is not, or cannot be read.
    """
    if path.suffix == '.parquet':
        try:
            groups = pyarrow.parquet.read_metadata(path).num_row_groups
        except _UNREADABLE as error:
            raise UserError(f'config.data.raw: {path} is no parquet file ({one_line(error)}): fetch it again') from None
        return [Chunk(str(path), split, group, group + 1) for group in range(groups)]
    length = path.stat().st_size
    step = length if path.suffix == '.gz' else CHUNK
    return [Chunk(str(path), split, first, min(first + step, length)) for first in range(0, length, max(step, 1))]


def raw_records(chunk: Chunk, fields: dict[str, str], counts: Counter) -> Iterator[Any]:
    """The records of a chunk; those that cannot be read are counted.

    Raises:
      UserError: the file cannot be read, or is damaged.
    """
    path = Path(chunk.path)
    try:
        if path.suffix == '.parquet':
            yield from _of_parquet(path, chunk, fields, counts)
            return
        for line in filter(bytes.strip, _lines(path, chunk)):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                _drop('not_json', counts)
                continue
            yield record
    except (EOFError, gzip.BadGzipFile, zlib.error):
        counts['files_broken_off'] += 1
    except _UNREADABLE as error:
        raise UserError(f'config.data.raw: {path} cannot be read ({one_line(error)}): fetch it again') from None


def _of_parquet(path: Path, chunk: Chunk, fields: dict[str, str], counts: Counter) -> Iterator[Any]:
    """The records of a row group; of how many are in memory at once, their average size decides."""
    file = pyarrow.parquet.ParquetFile(path)
    group = file.metadata.row_group(chunk.first)
    at_once = min(BATCH, TEXT * group.num_rows // max(group.total_byte_size, 1)) or 1
    for batch in file.iter_batches(at_once, row_groups=[chunk.first], columns=wanted_columns(file, fields)):
        schema = pa.schema([field.with_type(_in_microseconds(field.type)) for field in batch.schema])
        yield from _as_python(batch.cast(schema, safe=False), counts)


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """A type with all its time stamps in µs, if they are finer than Python's."""
    if pa.types.is_timestamp(kind) and kind.unit == 'ns':
        return pa.timestamp('us', kind.tz)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    return kind


def _as_python(batch: pa.RecordBatch, counts: Counter) -> list[dict[str, Any]]:
    """Records of a batch; those with what Python cannot hold, such as text that is no UTF-8, are counted."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, KeyError):  # no text, a year 10000, an unknown time zone
        if len(batch) > 1:
            return [record for at in range(len(batch)) for record in _as_python(batch.slice(at, 1), counts)]
        _drop('unreadable_value', counts)
        return []


def _drop(reason: str, counts: Counter) -> None:
    """Count a record that cannot be read."""
    counts['records_read'] += 1
    counts[f'dropped_{reason}'] += 1


def wanted_columns(file: pyarrow.parquet.ParquetFile, fields: dict[str, str]) -> list[str]:
    """The columns that hold what the fields' paths lead to: other parts of a turn are not decoded."""
    columns, wanted = [file.schema.column(number).path for number in range(len(file.schema))], paths_read(fields)

    def holds(steps: list[str], keys: list[str]) -> bool:  # between the keys stand names of lists' parts
        rest = iter(steps)
        return steps[0] == keys[0] and all(key in rest for key in keys)

    return [column for column in columns if any(holds(column.split('.'), keys) for keys in wanted)]


def _lines(path: Path, chunk: Chunk) -> Iterator[bytes]:
    """Lines that begin inside the chunk."""
    with gzip.open(path) if path.suffix == '.gz' else open(path, 'rb') as file:
        if path.suffix == '.gz':
            yield from file
            return
        at = 0
        if chunk.first:  # what the chunk before has begun, it also ends
            at = chunk.first - 1
            file.seek(at)
            at += len(file.readline())
        while at < chunk.last and (line := file.readline()):
            at += len(line)
            yield line


def rows(chunk: Chunk, number: int, rules: Rules, counts: Counter) -> Iterator[dict[str, Any]]:
    """The usable records of a chunk as rows of its part; the others are counted by reason."""
    for at, raw in enumerate(raw_records(chunk, rules.fields, counts)):
        counts['records_read'] += 1
        try:
            talk = conversation(raw, rules.fields, rules.users_salt)
            if reason := rules.filters.reason_to_drop(talk):
                raise BadRecord(reason)
        except BadRecord as bad:
            counts[f'dropped_{bad.reason}'] += 1
            continue
        except RecursionError:  # just not too deep to be read
            counts['dropped_nested_too_deeply'] += 1
            continue
        if rules.filters.scrub:
            for message in talk['messages']:
                message['content'] = scrub(message['content'], counts)
            talk['system'] = scrub(talk['system'], counts)
        *earlier, said = _said(talk)
        told = {name: talk[name] for name in ('id', 'user_id', 'language', 'system')}
        told['messages'] = json.dumps(talk['messages'], ensure_ascii=False)
        gone = talk['user_id'] in rules.opted_out
        yield dict(
            dict.fromkeys(told, '') if gone else told,
            place=number * _FIRST + at,
            named=_hashed(talk['id']),
            person=_hashed(talk['user_id']) if talk['user_id'] else 0,
            opted_out=gone,
            size=len(told['messages'].encode()) + len(talk['system'].encode()),
            with_system=talk['system'] != '',
            began=talk['began'],
            ended=talk['ended'],
            split=chunk.split,
            turns=len(talk['messages']),
            said=said,
            earlier=earlier,
            bands=bands(talk['messages'][0]['content'], *rules.banding),
        )


def _hashed(name: str) -> int:
    """The first 64 bits of a name's digest."""
    return int(digest(name)[:16], 16)


def _said(talk: dict[str, Any]) -> list[int]:
    """A number for what user and model have said after each reply; after the last user turn if none answers it.

    It is also of who the user is, and of the system message.
    """
    sha, found = blake2b(digest_size=8), []

    def add(text: str) -> None:
        data = text.encode()
        sha.update(len(data).to_bytes(8, 'little') + data)

    add(talk['user_id'])
    add(talk['system'])
    for place, message in enumerate(talk['messages'], start=1):
        add(message['content'])
        if place % 2 == 0 or place == len(talk['messages']):
            found.append(int.from_bytes(sha.digest(), 'little'))
    return found


def write_part(chunk: Chunk, number: int, rules: Rules, to: Path) -> None:
    """Scan a chunk into a parquet file, whose metadata hold its counts; under a temporary name until it is whole."""
    counts: Counter = Counter()
    temporary = to.with_name(f'.{to.name}.{uuid.uuid4().hex}.tmp')  # workers of other machines may write the same part
    with pyarrow.parquet.ParquetWriter(temporary, SCHEMA, compression='zstd') as writer:
        for batch in _batches(rows(chunk, number, rules, counts)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
        writer.add_key_value_metadata({'counts': json.dumps(counts)})
    temporary.replace(to)


def _batches(found: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of rows, of bounded number and bounded text."""
    batch, size = [], 0
    for row in found:
        batch.append(row)
        size += row['size']
        if len(batch) == BATCH or size > TEXT:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def part_path(folder: Path, number: int) -> Path:
    return folder / f'{number:06}.parquet'


def part_counts(part: Path) -> Counter:
    return Counter(json.loads(pyarrow.parquet.read_metadata(part).metadata[b'counts']))


def read_job(job: Path) -> tuple[Rules, list[tuple[int, Chunk]], dict[str, Any]]:
    """The rules of a job, its numbered chunks whose parts are not there yet, and all that its file says."""
    told = json.loads(job.read_text())
    rules = Rules(**told['rules'] | {'filters': Filters(**told['rules']['filters'])})
    numbered = enumerate(Chunk(**chunk) for chunk in told['chunks'])
    return rules, [(at, chunk) for at, chunk in numbered if not part_path(job.parent, at).exists()], told


def work(job: Path, worker: int) -> None:
    """Write one worker's share of the parts of a job that are not there yet."""
    rules, missing, told = read_job(job)
    for number, chunk in missing:
        if number % told['workers'] == worker:
            write_part(chunk, number, rules, part_path(job.parent, number))


def run_worker(write: Callable[..., None]) -> None:
    """Run a program that the stage starts, and end it soon after the stage has ended, even if that was killed.

    Its flags are --parent, the id of the stage's process, and what `write` takes, as text.
    """
    named = dict(argument.removeprefix('--').split('=', 1) for argument in sys.argv[1:])
    parent = int(named.pop('parent'))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        write(**named)
    except UserError as error:
        refuse(one_line(error))


if __name__ == '__main__':
    run_worker(lambda job, worker: work(Path(job), int(worker)))
