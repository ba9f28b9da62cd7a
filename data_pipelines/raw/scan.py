"""The first pass of ingest: turns each section of a raw file into a parquet file with one row per usable record.

A section is called a chunk, and its parquet file is called a part. Many processes (`raw.worker`) scan chunks in
parallel. If a run is killed, the next one writes only the missing parts. A part's bytes depend only on its chunk and
the rules. For users who have opted out, a part contains hashes, numbers and times, but no texts or ids. This is enough
for `ingest` to leave these users out without changing anything for other users.
"""

import dataclasses
import functools
import json
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_pipelines.core.records import SPLITS
from data_pipelines.privacy.user_keys import read_opt_out, read_salt
from data_pipelines.raw.files import BATCH, TEXT, Form, form_of, json_records, parquet_records
from data_pipelines.raw.filters import Filters, scrub
from data_pipelines.raw.formats import RawConversation, parse_conversation, paths_read
from data_pipelines.raw.near_duplicates import bands
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest

CHUNK = 32 * 2**20  # bytes of JSON lines per chunk
_CHUNK_POSITIONS = 2**32  # a record's position is its chunk's number × this + its index in the chunk
_UNREADABLE = (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError)  # raised by damaged files

SCHEMA = pa.schema(
    dict(
        position=pa.int64(),  # orders all records by file, then by their order in the file
        id_hash=pa.uint64(),
        user_hash=pa.uint64(),  # 0 if the user is unknown
        opted_out=pa.bool_(),  # if so, ids, language and texts are empty
        size=pa.int64(),  # bytes of text
        has_system=pa.bool_(),
        id=pa.string(),
        user_id=pa.string(),
        began=pa.string(),
        ended=pa.string(),
        language=pa.string(),
        split=pa.string(),
        system=pa.string(),
        messages=pa.large_string(),  # JSON; together, the messages in a table may exceed 2 GB
        turns=pa.int32(),
        content_hash=pa.uint64(),  # of the user, the system message and the texts
        prefix_hashes=pa.list_(pa.uint64()),  # the same hash of the conversation up to each reply before the last turn
        bands=pa.list_(pa.uint64()),  # LSH bands of the opening, from `raw.near_duplicates`
    )
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules for parsing and filtering records.

    Attributes:
      fields: paths keyed by field, as in `config.ingest.fields`.
      filters: which conversations to keep, and whether to scrub personal details.
      banding: for the near-duplicate search, the number of LSH bands and the number of MinHash values per band, from
        `raw.near_duplicates.banding`.
      salt: the file with the salt for user keys; '' leaves user ids unchanged.
      opt_out: the file with the ids of users who have opted out; '' if there is no such file.
    """

    fields: dict[str, str]
    filters: Filters
    banding: Sequence[int]
    salt: str
    opt_out: str = ''

    @functools.cached_property  # a worker scans many chunks
    def users_salt(self) -> bytes:
        return read_salt(self.salt)

    @functools.cached_property
    def opted_out(self) -> frozenset[str]:
        return read_opt_out(self.opt_out)

    def without_missing_salt(self) -> 'Rules':
        """Return the rules, without the salt if the salt file does not exist yet. (Only `ingest` creates it.)"""
        has_salt = not self.salt or Path(self.salt).expanduser().exists()
        return self if has_salt else dataclasses.replace(self, salt='')


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A section of a raw file: a parquet row group, a byte range of uncompressed JSON lines, or any other whole file.

    Attributes:
      path: the file.
      split: the split that the file is named after; '' if file names do not determine the splits.
      first, last: the range of row groups or bytes; `last` is not included.
    """

    path: str
    split: str
    first: int
    last: int


def chunks(path: Path, split: str) -> list[Chunk]:
    """Divide a file into chunks.

    Raises:
      UserError: the file cannot be read, or is not in a supported form.
    """
    form = form_of(path, 'config.data.raw')
    if form.layout == 'parquet':
        try:
            groups = pyarrow.parquet.read_metadata(path).num_row_groups
        except _UNREADABLE as error:
            raise UserError(
                f'config.data.raw: {path} is not a parquet file ({one_line(error)}): fetch it again'
            ) from None
        return [Chunk(str(path), split, group, group + 1) for group in range(groups)]
    length = path.stat().st_size
    step = CHUNK if form == Form('lines') else length
    return [Chunk(str(path), split, first, min(first + step, length)) for first in range(0, length, max(step, 1))]


def file_split(path: Path) -> str:
    """Return the split that a file like `test.jsonl.gz` or `test-00000-of-00002.parquet` is named after; '' if none."""
    name = re.split(r'[.-]', path.name)[0]
    return name if name in SPLITS else ''


def chunks_of(files: Sequence[Path], raw: str) -> list[Chunk]:
    """Return the chunks of all raw files, with the splits that the files are named after.

    Args:
      files: the raw files.
      raw: `config.data.raw`, for error messages.

    Raises:
      UserError: some files are named after splits and others are not, or there are no records.
    """
    by_split = {file_split(path): path for path in files}
    if unnamed := len(by_split) > 1 and by_split.pop('', None):
        raise UserError(
            f'config.data.raw: {next(iter(by_split.values()))} is named after a split, but {unnamed} is not: name '
            'either all files after splits or none of them'
        )
    found = [chunk for path in files for chunk in chunks(path, file_split(path) if len(by_split) > 1 else '')]
    if not found:
        raise UserError(f'config.data.raw: {raw} contains no records: set the key to other files')
    return found


def raw_records(chunk: Chunk, fields: dict[str, str], counts: Counter) -> Iterator[Any]:
    """Yield the records of a chunk; unreadable records are counted and skipped.

    If a compressed file is damaged, it is counted, and the records before the damage are used.

    Raises:
      UserError: the file cannot be read, or is a damaged parquet file.
    """
    path = Path(chunk.path)
    form = form_of(path, 'config.data.raw')
    try:
        if form.layout == 'parquet':
            columns = wanted_columns(pyarrow.parquet.ParquetFile(path), fields)
            records = parquet_records(path, chunk.first, columns)
        else:
            border = (chunk.first, chunk.last) if form == Form('lines') else ()
            records = (record for _, record in json_records(path, form, *border))
        for record in records:
            if isinstance(record, BadRecord):
                counts['records_read'] += 1
                counts[f'dropped_{record.reason}'] += 1
            else:
                yield record
    except (EOFError, zlib.error, *_UNREADABLE) as error:
        if not form.compression:
            raise UserError(f'config.data.raw: {path} cannot be read ({one_line(error)}): fetch it again') from None
        counts['files_broken_off'] += 1


def wanted_columns(file: pyarrow.parquet.ParquetFile, fields: dict[str, str]) -> list[str]:
    """Return the columns that the fields' paths lead to; only these columns are decoded."""
    columns, wanted = [file.schema.column(number).path for number in range(len(file.schema))], paths_read(fields)

    def holds(steps: list[str], keys: list[str]) -> bool:  # parquet puts its own names for list items between keys
        rest = iter(steps)
        return steps[0] == keys[0] and all(key in rest for key in keys)

    return [column for column in columns if any(holds(column.split('.'), keys) for keys in wanted)]


def rows(chunk: Chunk, number: int, rules: Rules, counts: Counter) -> Iterator[dict[str, Any]]:
    """Yield one row for each usable record of a chunk; the other records are counted by reason."""
    for index, raw in enumerate(raw_records(chunk, rules.fields, counts)):
        counts['records_read'] += 1
        try:
            conversation = usable_conversation(raw, rules, counts)
        except BadRecord as bad:
            counts[f'dropped_{bad.reason}'] += 1
            continue
        position = number * _CHUNK_POSITIONS + index
        yield _row(conversation, position, chunk.split, rules)


def usable_conversation(raw: Any, rules: Rules, counts: Counter) -> RawConversation:
    """Parse and filter a raw record, scrub personal details if the rules say so, and return the conversation.

    Args:
      raw: the record.
      rules: the rules for parsing, filtering and scrubbing.
      counts: receives the numbers of messages that were left out or joined, and of details that were replaced.

    Raises:
      BadRecord: the record cannot be used. The exception contains the reason under which to count the record.
    """
    try:
        conversation = parse_conversation(raw, rules.fields, rules.users_salt, counts)
        if reason := rules.filters.reason_to_drop(conversation):
            raise BadRecord(reason)
    except RecursionError:  # JSON that can be read, but is nested too deeply to process
        raise BadRecord('nested_too_deeply') from None
    if rules.filters.scrub:
        for message in conversation['messages']:
            message['content'] = scrub(message['content'], counts)
        conversation['system'] = scrub(conversation['system'], counts)
    return conversation


def _row(conversation: RawConversation, position: int, split: str, rules: Rules) -> dict[str, Any]:
    """Return a conversation as a row with the columns of SCHEMA."""
    *prefix_hashes, content_hash = _content_hashes(conversation)
    texts = {name: conversation[name] for name in ('id', 'user_id', 'language', 'system')}
    texts['messages'] = json.dumps(conversation['messages'], ensure_ascii=False)
    opted_out = conversation['user_id'] in rules.opted_out
    return dict(
        dict.fromkeys(texts, '') if opted_out else texts,
        position=position,
        id_hash=_hashed(conversation['id']),
        user_hash=_hashed(conversation['user_id']) if conversation['user_id'] else 0,
        opted_out=opted_out,
        size=len(texts['messages'].encode()) + len(conversation['system'].encode()),
        has_system=conversation['system'] != '',
        began=conversation['began'],
        ended=conversation['ended'],
        split=split,
        turns=len(conversation['messages']),
        content_hash=content_hash,
        prefix_hashes=prefix_hashes,
        bands=bands(conversation['messages'][0]['content'], *rules.banding),
    )


def _hashed(name: str) -> int:
    """Return the first 64 bits of a name's digest."""
    return int(digest(name)[:16], 16)


def _content_hashes(conversation: RawConversation) -> list[int]:
    """Return one hash for each reply, and one for the last turn if it has no reply.

    Each hash covers the user, the system message and all texts up to that turn.
    """
    sha, hashes = blake2b(digest_size=8), []

    def add(text: str) -> None:
        data = text.encode()
        sha.update(len(data).to_bytes(8, 'little') + data)

    add(conversation['user_id'])
    add(conversation['system'])
    messages = conversation['messages']
    for length, message in enumerate(messages, start=1):
        add(message['content'])
        if length % 2 == 0 or length == len(messages):
            hashes.append(int.from_bytes(sha.digest(), 'little'))
    return hashes


def write_part(chunk: Chunk, number: int, rules: Rules, to: Path, *, most: int | None = None) -> None:
    """Scan a chunk, and write its rows to a parquet file, with the counts in the file's metadata.

    The file appears complete or not at all. It contains the first `most` rows, or all rows if `most` is None.
    """
    counts: Counter = Counter()
    temporary = to.with_name(f'.{to.name}.{uuid.uuid4().hex}.tmp')  # workers on other machines may write the same part
    with pyarrow.parquet.ParquetWriter(temporary, SCHEMA, compression='zstd') as writer:
        for batch in _batches(islice(rows(chunk, number, rules, counts), most)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
        writer.add_key_value_metadata({'counts': json.dumps(counts)})
    temporary.replace(to)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group rows into lists of limited length and text size."""
    batch, size = [], 0
    for row in rows:
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


def read_job(path: Path) -> tuple[Rules, list[tuple[int, Chunk]], dict[str, Any]]:
    """Read a job file. Return its rules, the numbers and chunks of its missing parts, and its whole content."""
    job = json.loads(path.read_text())
    rules = Rules(**job['rules'] | {'filters': Filters(**job['rules']['filters'])})
    numbered = enumerate(Chunk(**chunk) for chunk in job['chunks'])
    return rules, [(number, chunk) for number, chunk in numbered if not part_path(path.parent, number).exists()], job


def work(path: Path, worker: int) -> None:
    """Write one worker's share of the missing parts of the job in a job file."""
    rules, missing, job = read_job(path)
    for number, chunk in missing:
        if number % job['workers'] == worker:
            write_part(chunk, number, rules, part_path(path.parent, number))
