"""Files of records: every form that we read gives the same records, and every other file is refused by name."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiny

from data_pipelines.raw import files
from data_pipelines.raw.files import Form, files_of, form_of, json_records, parquet_records
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.io.errors import UserError

RECORDS = [dict(number=n, text='Où est le café? 上' * n, deep=[[n], dict(a=None)]) for n in range(40)]
LINES = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in RECORDS).encode()


def zstd(data: bytes) -> bytes:
    with pyarrow.BufferOutputStream() as sink:
        with pyarrow.CompressedOutputStream(sink, 'zstd') as file:
            file.write(data)
        return sink.getvalue().to_pybytes()


def parquet(folder: Path) -> bytes:
    table = pyarrow.table(dict(number=[r['number'] for r in RECORDS], text=[r['text'] for r in RECORDS]))
    pyarrow.parquet.write_table(table, folder / 'made.parquet', row_group_size=7)
    return (folder / 'made.parquet').read_bytes()


def read(path: Path) -> list:
    form = form_of(path, 'config.data.raw')
    if form.layout == 'parquet':
        groups = range(pyarrow.parquet.read_metadata(path).num_row_groups)
        return [record for group in groups for record in parquet_records(path, group)]
    return [record for _, record in json_records(path, form)]


FORMS = {
    'lines': LINES,
    'no last line feed': LINES.rstrip(),
    'CRLF and blank lines': LINES.replace(b'\n', b'\r\n \r\n'),
    'byte-order mark': b'\xef\xbb\xbf' + LINES,
    'gzip': gzip.compress(LINES),
    'two gzip members': gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
    'zstd': zstd(LINES),
    'array': json.dumps(RECORDS).encode(),
    'indented array': json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
    'indented objects': '\n'.join(json.dumps(record, indent=1) for record in RECORDS).encode(),
    'array in gzip': gzip.compress(json.dumps(RECORDS).encode()),
    'arrays in lines': b'\n'.join(json.dumps(part).encode() for part in (RECORDS[:3], RECORDS[3:])),
}


@pytest.mark.parametrize('suffix', ['.jsonl', '.json', '.gz', '.zst', '.txt', ''])
@pytest.mark.parametrize('form', FORMS)
def test_the_content_decides_how_a_file_is_read(form, suffix, tmp_path):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(FORMS[form])
    assert read(path) == RECORDS


def test_parquet_under_any_name(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(parquet(tmp_path))
    assert read(path) == [dict(number=r['number'], text=r['text']) for r in RECORDS]


REFUSED = {
    'in UTF-16, not UTF-8': [('\ufeff' + LINES.decode()).encode(f'utf-16-{order}') for order in ('le', 'be')],
    'UTF-16': [json.dumps(RECORDS).encode('utf-16-le'), gzip.compress(LINES.decode().encode('utf-16'))],
    'in UTF-32, not UTF-8': [LINES.decode().encode('utf-32')],
    'not in UTF-8': [
        '{"text": "Où est le café?"}\n'.encode('latin-1') * 3,
        '{"text": "Où"}\n{"text": "à"}'.encode('cp1252'),
    ],
    'written with carriage returns, not line feeds': [LINES.replace(b'\n', b'\r')],
    'a zip archive': [b'PK\x03\x04rest'],
    'compressed with xz': [b'\xfd7zXZ\0rest'],
    'compressed with bzip2': [b'BZh9rest'],
    'an SQLite database': [b'SQLite format 3\0'],
}  # fmt: skip


@pytest.mark.parametrize(('words', 'data'), [(words, data) for words, several in REFUSED.items() for data in several])
def test_other_files_are_refused_by_kind(words, data, tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(data)
    with pytest.raises(UserError) as refused:
        form_of(path, 'config.data.raw')
    assert words in str(refused.value) and str(path) in str(refused.value) and 'config.data.raw' in str(refused.value)


@pytest.mark.parametrize('seed', range(200))
def test_lines_and_values_against_plain_parsing(seed, tmp_path, monkeypatch):
    """Any block size, any record limit and any borders: each line is read once, and long ones are counted once."""
    rng = random.Random(seed)
    monkeypatch.setattr(files, '_BLOCK', rng.randint(16, 200))
    monkeypatch.setattr(files, 'MAX_RECORD', 300)
    path = tmp_path / 'x.jsonl'
    texts = [
        ' ' * rng.randint(0, 250) if rng.random() < 0.3 else json.dumps(dict(x='a' * rng.randint(0, 400)))
        for _ in range(9)
    ]
    data = '\n'.join(texts).encode() + rng.choice([b'', b'\n'])
    path.write_bytes(data)
    expected = [(i, json.loads(x) if len(x) <= 300 else 'too_long') for i, x in enumerate(texts, 1) if x.strip()]
    found = [(i, x.reason if isinstance(x, BadRecord) else x) for i, x in json_records(path, Form('lines'))]
    assert found == expected
    step = rng.randint(1, 150)
    parts = [json_records(path, Form('lines'), first, first + step) for first in range(0, len(data), step)]
    found = [x.reason if isinstance(x, BadRecord) else x for part in parts for _, x in part]
    assert found == [x for _, x in expected]
    items = [
        rng.choice([dict(a='x' * rng.randint(0, 250)), 3, 's', None, [1, [2]], True, 1.5])
        for _ in range(rng.randint(0, 9))
    ]
    path.write_bytes(json.dumps(items, indent=rng.choice([None, 2])).encode())
    assert [x for _, x in json_records(path, Form('values'))] == items


def test_faults_in_the_middle_cost_one_record(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n' + b'[' * 10**5 + b'\n{"a": ' + b'9' * 5000 + b'}\n{"a": 2}\n')
    reasons = [x.reason if isinstance(x, BadRecord) else x for x in read(path)]
    assert reasons == [dict(a=1), 'not_json', 'not_utf8', 'not_json', 'not_json', dict(a=2)]
    for data, left in (
        (b'[{"a": 1}, {"a": 2', [dict(a=1), 'not_json']),
        (b'[{"a": 1}, nonsense, 3]', [dict(a=1), 'not_json']),
    ):
        path.write_bytes(data)
        assert [x.reason if isinstance(x, BadRecord) else x for x in read(path)] == left


BLOAT = {
    'one line': '{"a": "%s"}' % ('x' * 50),
    'one value': '[{"a": "%s"}]' % ('x' * 50),
    'blank lines': '\n',
}  # fmt: skip


@pytest.mark.parametrize('kind', BLOAT)
def test_a_small_file_that_holds_a_gigabyte_needs_little_memory(kind, tmp_path):
    """The child may use 400 MiB beyond what its imports need; the file decompresses to 1 GiB."""
    path = tmp_path / 'x.jsonl.gz'
    middle = b'\n' * 2**20 if kind == 'blank lines' else b'x' * 2**20
    head, tail = {'one line': (b'{"a": "', b'"}\n'), 'one value': (b'[{"a": "', b'"}]'), 'blank lines': (b'', b'')}[
        kind
    ]
    with gzip.open(path, 'wb', compresslevel=1) as file:
        file.write(head)
        for _ in range(2**10):
            file.write(middle)
        file.write(tail + b'{"b": 1}\n')
    code = f"""
import resource
from pathlib import Path
from data_pipelines.raw.files import form_of, json_records
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
path = Path({str(path)!r})
print([getattr(record, 'reason', record) for _, record in json_records(path, form_of(path, 'config.data.raw'))])
"""
    found = subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    expected = {'one line': "['too_long', {'b': 1}]", 'one value': "['too_long']", 'blank lines': "[{'b': 1}]"}
    assert found.stdout.strip() == expected[kind]


def test_folders(tmp_path, capsys):
    for name in ('a.jsonl', 'b/c.jsonl.zst', '.hidden/d.jsonl', 'e.csv', 'f.json', 'manifest.json', 'g.parquet'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'{}')
    found = files_of(str(tmp_path), 'config.data.raw')
    assert [path.name for path in found.files] == ['a.jsonl', 'c.jsonl.zst', 'g.parquet']
    found.say_what_is_not_read('config.data.raw')
    assert '2 files beside' in (said := capsys.readouterr().err) and '.csv, .json' in said
    for name in (str(tmp_path / 'none'), str(tmp_path / '.hidden' / 'none')):
        with pytest.raises(UserError, match=r'config\.data\.raw: .*none does not exist'):
            files_of(name, 'config.data.raw')
