"""Finds the files that a config key lists, and reads records from them in bounded memory.

A file's first bytes, not its name, determine how it is read. The file is either parquet or UTF-8 JSON. A JSON file may
be compressed with gzip or zstd. It contains either one record per line, or one or more values (such as an array of
records) that may span lines.
"""

import codecs
import dataclasses
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.hub import on_hub, snapshot

MAX_RECORD = 16 * 2**20  # bytes of one JSON record; Python objects need several times as much memory
BATCH, TEXT = 500, 16 * 2**20  # limits on parquet records in memory at once, and on bytes of their text

# Which files are read in folders and hub data sets. There, .json files mostly contain settings.
PATTERNS = tuple(f'*.{name}' for name in ('jsonl', 'jsonl.gz', 'jsonl.zst', 'ndjson', 'ndjson.gz', 'parquet'))
_BLOCK = 2**20
_NEXT = re.compile(r'[\s,]*')
_BOMS = {
    b'\xff\xfe\0\0': 'UTF-32', b'\0\0\xfe\xff': 'UTF-32', b'\xff\xfe': 'UTF-16', b'\xfe\xff': 'UTF-16',
}  # fmt: skip
_OTHER_KINDS = {
    b'PK\x03\x04': 'a zip archive: unpack it',
    b'BZh': 'compressed with bzip2: decompress it',
    b'\xfd7zXZ': 'compressed with xz: decompress it',
    b'7z\xbc\xaf': 'a 7z archive: unpack it',
    b'%PDF': 'a PDF: convert it to JSON lines',
    b'SQLite format 3': 'an SQLite database: convert it to JSON lines',
    b'ARROW1': 'an Arrow file: convert it to parquet',
}
_MAGIC = {b'\x1f\x8b': 'gzip', b'\x28\xb5\x2f\xfd': 'zstd'}

Compression = Literal['', 'gzip', 'zstd']


@dataclasses.dataclass(frozen=True)
class Form:
    """How a file stores its records.

    Attributes:
      layout: 'parquet', 'lines' (one JSON value per line) or 'values' (JSON values that may span lines).
      compression: 'gzip', 'zstd' or '' (none); always '' for parquet.
    """

    layout: Literal['parquet', 'lines', 'values']
    compression: Compression = ''


class Files(NamedTuple):
    """The record files that a name in the config refers to and, for a folder, the other files in it; both sorted."""

    files: Sequence[Path]
    others: Sequence[Path]

    def say_what_is_not_read(self, key: str) -> None:
        """Print how many files in the folder are not read, and their suffixes. If all files are read, print nothing."""
        if self.others:
            kinds = ', '.join(sorted({path.suffix or path.name for path in self.others})[:5])
            print(
                f'{key}: {len(self.others)} files beside {self.files[0]} are not read ({kinds}): if they contain '
                f'records, add their paths to {key}',
                file=sys.stderr,
            )


def files_of(name: str, key: str) -> Files:
    """Return the record files that a name in the config refers to. Hidden files in folders are ignored.

    Args:
      name: a file, a folder or hf://OWNER/NAME[@REVISION][/PATH].
      key: the config key that contains the name, for errors.

    Raises:
      UserError: the path does not exist, contains no record files, or cannot be fetched from the hub.
    """
    path, others = Path(name), ()
    if on_hub(name):
        files = snapshot(name, 'dataset', PATTERNS, key).files
    elif path.is_dir():
        visible = [each for each in sorted(path.rglob('*')) if each.is_file() and not _hidden(each.relative_to(path))]
        files = [each for each in visible if _named_as_records(each)]
        others = [each for each in visible if not _named_as_records(each) and each.name != 'manifest.json']
    else:
        files = [path]
    if not files or not all(each.is_file() for each in files):
        raise UserError(
            f'{key}: {path} does not exist or contains no .jsonl, .ndjson or .parquet file: set the key to a different '
            'path'
        )
    return Files(files, others)


def _named_as_records(path: Path) -> bool:
    return any(map(path.match, PATTERNS))


def _hidden(path: Path) -> bool:
    return any(part.startswith('.') for part in path.parts)


def form_of(path: Path, key: str) -> Form:
    """Return how a file stores its records, judging by its first bytes.

    Raises:
      UserError: the file cannot be read, or is not in a supported form. The message names the file's encoding or type.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(_BLOCK)
            if head.startswith(b'PAR1'):
                return Form('parquet')
            compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), '')
            if path.suffix == '.parquet' and not compression and head.lstrip()[:1] not in (b'{', b'['):
                raise UserError(f'{key}: {path} is not a parquet file, despite its name: fetch it again')
        if compression:
            with open_json(path, compression) as file:
                head = _first_block(file)
    except (OSError, EOFError) as error:
        raise UserError(f'{key}: {path} cannot be read ({error}): check the file') from None
    if fault := _fault(head):
        raise UserError(f'{key}: {path} is {fault}')
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip()
    spans_lines = text.startswith(b'[') or text.split(b'\n', 1)[0].strip() == b'{'
    return Form('values' if spans_lines else 'lines', compression)


def _first_block(file: BinaryIO) -> bytes:
    try:
        return _read(file)
    except (EOFError, OSError, zlib.error):  # damaged: reading the records reports this
        return b''


def _fault(head: bytes) -> str:
    """Return why a file cannot be read as UTF-8 JSON, and what to do; '' if its first bytes show no fault."""
    for magic, fault in _OTHER_KINDS.items():
        if head.startswith(magic):
            return fault
    encoding = next((name for mark, name in _BOMS.items() if head.startswith(mark)), '')
    if not encoding and head.count(0) * 4 > len(head):
        encoding = 'UTF-16'
    if encoding:
        return f'in {encoding}, not UTF-8: convert it with `iconv -f {encoding} -t UTF-8`'
    if b'\n' not in head.strip() and b'\r' in head.strip():
        return 'written with carriage returns, not line feeds, between lines: convert it with `mac2unix`'
    lines = [line for line in head.splitlines()[:1000] if line.strip()]
    if len(head) == _BLOCK and len(lines) > 1:
        lines.pop()  # may be cut inside a character
    if lines and not any(map(_is_utf8, lines)):
        return 'not in UTF-8: convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8`'
    return ''


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == 'unexpected end of data' and error.end == len(data)
    return True


def open_json(path: Path, compression: Compression) -> BinaryIO:
    """Open a JSON file for reading, and decompress it if it is compressed."""
    if compression == 'gzip':
        return gzip.open(path, 'rb')
    if compression == 'zstd':
        return pa.CompressedInputStream(pa.OSFile(str(path)), 'zstd')
    return open(path, 'rb')


def parquet_records(path: Path, group: int, columns: list[str] | None = None) -> Iterator[dict[str, Any] | BadRecord]:
    """Yield the records of a row group; a record with a value that Python cannot represent is yielded as a BadRecord.

    The average size of a record determines how many are in memory at once. Only the given columns are decoded; None
    means all columns.

    Raises:
      OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError: the file is damaged.
    """
    file = pyarrow.parquet.ParquetFile(path)
    group_size = file.metadata.row_group(group)
    at_once = min(BATCH, TEXT * group_size.num_rows // max(group_size.total_byte_size, 1)) or 1
    for batch in file.iter_batches(at_once, row_groups=[group], columns=columns):
        schema = pa.schema([field.with_type(_in_microseconds(field.type)) for field in batch.schema])
        yield from _as_python(batch.cast(schema, safe=False))


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """Return the type with time stamps in µs instead of ns, because Python's datetime cannot represent nanoseconds."""
    if pa.types.is_timestamp(kind) and kind.unit == 'ns':
        return pa.timestamp('us', kind.tz)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    return kind


def _as_python(batch: pa.RecordBatch) -> list[dict[str, Any] | BadRecord]:
    """Convert a batch to Python records. A record that Python cannot represent becomes a BadRecord."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, KeyError):  # text that is not UTF-8, the year 10000, …
        if len(batch) > 1:
            return [record for index in range(len(batch)) for record in _as_python(batch.slice(index, 1))]
        return [BadRecord('unreadable_value')]


def json_records(
    path: Path, form: Form, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, Any | BadRecord]]:
    """Yield each record with its number, counted from 1.

    The number is the record's line number or, if records may span several lines, the record's position in the file. A
    record that cannot be read is yielded as a BadRecord.

    Args:
      path: a JSON file.
      form: how the file stores its records, from `form_of`.
      first, last: a range of bytes in an uncompressed file with one record per line; `last` is not included, and None
        means the end of the file. Only records whose lines begin inside the range are yielded. Their line numbers are
        counted from the first line that begins inside the range.

    Raises:
      EOFError, OSError, zlib.error: the file is damaged.
    """
    with open_json(path, form.compression) as file:
        if form.layout == 'values':
            yield from enumerate(_values(file), start=1)
            return
        for number, line in _lines(file, first, last):
            yield number, BadRecord('too_long') if line is None else _parsed(line.removeprefix(b'\xef\xbb\xbf'))


def _parsed(line: bytes) -> Any | BadRecord:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRecord('not_utf8')
    except (ValueError, RecursionError):
        return BadRecord('not_json')


def _lines(file: BinaryIO, first: int, last: int | None) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number and the text of each non-blank line that begins in a range of bytes.

    The text of a line with more than `MAX_RECORD` bytes is None. At most `MAX_RECORD` bytes and one block are in
    memory.
    """
    crosses = bool(first)  # the previous range reads the line that crosses the border
    start = offset = max(first - 1, 0)  # where the current line and the current block begin
    if offset:
        file.seek(offset)
    number, line, too_long = int(not crosses), b'', False
    while (last is None or start < last) and (block := _read(file)):
        if block.isspace() and not line and not crosses:  # so that gigabytes of blank lines take little time
            number, offset = number + block.count(b'\n'), offset + len(block)
            start = offset
            continue
        *ended, unfinished = block.split(b'\n')
        for rest in ended:
            if not crosses and (last is None or start < last):
                too_long = too_long or len(line) + len(rest) > MAX_RECORD
                if too_long or (line + rest).strip():
                    yield number, None if too_long else line + rest
            offset += len(rest) + 1
            number, start, line, too_long, crosses = number + 1, offset, b'', False, False
        offset += len(unfinished)
        line = b'' if crosses or too_long else line + unfinished
        if len(line) > MAX_RECORD:
            line, too_long = b'', True
    if not crosses and (last is None or start < last) and (too_long or line.strip()):
        yield number, None if too_long else line


def _read(file: BinaryIO, size: int = _BLOCK) -> bytes:
    """Read a block. If a gzip file is truncated, all data before the damage is returned before an error is raised."""
    return file.read1(size) if isinstance(file, gzip.GzipFile) else file.read(size)


def _values(file: BinaryIO) -> Iterator[Any | BadRecord]:
    """Yield the JSON values in a file. If a value is an array, yield its items instead."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder('utf-8-sig')()
    text, at, in_array, ended = '', 0, False, False
    while True:
        at = _NEXT.match(text, at).end()
        if at < len(text) and text[at] == ('[', ']')[in_array]:
            at, in_array = at + 1, not in_array
            continue
        try:
            item, end = decoder.raw_decode(text, at)
            if end < len(text) or ended:
                yield item
                at = end
                continue
        except RecursionError:
            yield BadRecord('not_json')
            return
        except ValueError:
            pass  # the value may continue beyond the text read so far
        if ended or len(text) - at > MAX_RECORD:
            if at < len(text) or in_array:
                yield BadRecord('not_json' if ended else 'too_long')
            return
        try:
            block = _read(file, max(_BLOCK, len(text) - at))
            text, at, ended = text[at:] + utf8.decode(block, final=not block), 0, not block
        except UnicodeDecodeError:
            yield BadRecord('not_utf8')
            return
