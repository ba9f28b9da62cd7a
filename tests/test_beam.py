"""Ingest with Beam against ingest without: the same bytes, killed or not, and the same failures."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from benchmarks.dump import record
from raw_conversations import config, output, raw_conversation, records, write_lines

from data_pipelines import ingest
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json

SIDE_BY_SIDE = '--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2'
with_beam = pytest.mark.skipif(not find_spec('apache_beam'), reason='apache-beam is not installed')


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """1,000 generated conversations in WildChat-1M's schema, in ten chunks."""
    folder = tmp_path_factory.mktemp('raw')
    for part in range(2):
        table = pyarrow.Table.from_pylist([record(number) for number in range(500 * part, 500 * part + 500)])
        pyarrow.parquet.write_table(table, folder / f'{part}.parquet', row_group_size=100)
    return folder


@pytest.fixture(scope='module')
def plain(raw, tmp_path_factory):
    """The config of a finished run without Beam."""
    folder = tmp_path_factory.mktemp('plain')
    c = config(folder, raw=str(raw), conversations=str(folder / 'runs' / 'plain'))
    c.ingest.salt = str(folder / 'salt')
    ingest.STAGE.run(c)
    return c


def with_options(plain, folder, beam: str):
    c = plain.copy_and_resolve_references()
    c.beam, c.data.conversations = beam, str(folder)
    return c


def manifest(c) -> dict:
    return read_json(tiny.Path(c.data.conversations) / 'manifest.json', '')


@with_beam
def test_a_beam_pipeline_gives_the_same_bytes(tmp_path, plain):
    c = with_options(plain, tmp_path / 'beam', SIDE_BY_SIDE)
    counts = ingest.STAGE.run(c)
    assert output(c) == output(plain) and manifest(c) == manifest(plain)
    assert counts['records_read'] == 1000 and min(counts['dropped_seen_before'], counts['dropped_toxic']) > 0
    assert len(records(c)) > 800 and (tmp_path / 'beam').stat().st_mode & 0o777 == 0o700


@with_beam
def test_a_killed_pipeline_goes_on_after_the_parts_that_are_there(tmp_path, plain):
    c = with_options(plain, tmp_path / 'killed', '--runner=DirectRunner')
    flags = [f'--config={tiny.CONFIG}', f'--config.ingest.salt={c.ingest.salt}', f'--config.beam={c.beam}']
    flags += [f'--config.data.{name}={c.data[name]}' for name in ('raw', 'conversations')]
    work = tmp_path / '.killed.journal'

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in work.glob('*/[0-9]*.parquet')}

    program = [sys.executable, '-m', 'data_pipelines.ingest', *flags]
    process = subprocess.Popen(program, cwd=tiny.ROOT, env=os.environ, start_new_session=True)
    while process.poll() is None and len(parts()) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = parts()
    assert 3 <= len(done) < 10 and not (tmp_path / 'killed').exists()
    process = subprocess.Popen(program, cwd=tiny.ROOT, env=os.environ)
    now = done
    while process.poll() is None and len(now) < 10:
        time.sleep(0.01)
        now = parts() or now
    assert done.items() <= now.items() and len(now) > len(done)
    assert process.wait() == 0 and not work.exists()
    assert output(c) == output(plain) and manifest(c) == manifest(plain)


@pytest.mark.parametrize('beam', ['', pytest.param('--runner=DirectRunner', marks=with_beam)], ids=['plain', 'beam'])
def test_a_worker_s_failure_ends_the_run(tmp_path, raw, capfd, beam):
    """A damaged page is noticed only by the worker that decodes it."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    data = bytearray((raw / '0.parquet').read_bytes())
    group = pyarrow.parquet.read_metadata(raw / '0.parquet').row_group(2)
    for column in map(group.column, range(group.num_columns)):
        first = column.dictionary_page_offset or column.data_page_offset
        data[first : first + column.total_compressed_size] = b'\xff' * column.total_compressed_size
    (folder / '0.parquet').write_bytes(data)
    c = config(tmp_path, raw=str(folder))
    c.beam = beam
    with pytest.raises(UserError, match='a worker process failed .*: fix the error that it printed above'):
        ingest.STAGE.run(c)
    assert re.search(r'0\.parquet cannot be read .*: fetch it again', capfd.readouterr().err)
    assert not tiny.Path(c.data.conversations).exists()


def test_without_beam_its_options_are_refused(tmp_path, monkeypatch):
    write_lines(tmp_path / 'raw.jsonl', [raw_conversation('a', 'How do bees fly?', 'With wings.')])
    c = config(tmp_path)
    c.beam = SIDE_BY_SIDE
    monkeypatch.setattr(ingest, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'config\.beam is set, but apache-beam is not installed'):
        ingest.STAGE.run(c)
