"""Ingest of a generated dump in WildChat-1M's schema: conversations per second, and memory, at two sizes.

python tests/benchmarks/ingest.py             # speed and memory at two sizes
python tests/benchmarks/ingest.py --kill      # the larger, killed at five moments: same bytes as without kills?
python tests/benchmarks/ingest.py --mutated   # 100,000 faulty records: is each counted?
python tests/benchmarks/ingest.py --beam      # 20,000 through a Beam pipeline: same bytes as without?

`dump.py` writes the dump, in files of WildChat's size. The stage is measured as users run it, from start to exit;
memory is that of all its processes, with shared pages counted once. Writes a part of `results/ingest.json`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet
from absl import app, flags
from dump import record
from mutations import mutated
from watched import measured, program

from data_pipelines.core.journal import work_folder
from data_pipelines.sources.simulated import wildchat_record
from rlhi_jax.io.files import file_digest, read_json, write_json

RESULTS = Path(__file__).parent / 'results' / 'ingest.json'
RUNS = Path('runs/ingest')
A_FILE, A_GROUP, MUTATED, BEAM = 50_000, 1_000, 100_000, 20_000


def write_file(path: Path, first: int, count: int) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, temporary = None, path.with_suffix('.tmp')
    for begin in range(first, first + count, A_GROUP):
        table = pa.Table.from_pylist([record(number) for number in range(begin, begin + A_GROUP)])
        writer = writer or pyarrow.parquet.ParquetWriter(temporary, table.schema)
        writer.write_table(table)
    writer.close()
    temporary.replace(path)


def start_ingest(raw: str, to: Path, *more: str) -> subprocess.Popen:
    flags_ = ['--config=configs/wildchat.py', '--overwrite', f'--config.data.raw={raw}', '--config.ingest.languages=']
    flags_ += [f'--config.data.conversations={to}']
    return program('data_pipelines.ingest', *flags_, *more)


def raw_files(count: int) -> str:
    files = [RUNS / 'raw' / f'{number:05}.parquet' for number in range(count // A_FILE)]
    with ProcessPoolExecutor(2) as workers:
        list(workers.map(write_file, files, range(0, count, A_FILE), [A_FILE] * len(files)))
    return ','.join(map(str, files))


def counts_of(folder: Path) -> dict:
    return read_json(folder / 'manifest.json', '')['counts']


def measure(count: int) -> dict:
    files, to = raw_files(count), RUNS / f'of_{count}'
    seconds, peak = measured(start_ingest(files, to))
    raw = sum(Path(name).stat().st_size for name in files.split(',')) / 2**30
    return dict(seconds=seconds, a_second=count / seconds, peak_gib=peak, raw_gib=raw, counts=counts_of(to))


def killed(count: int) -> dict:
    """Kill a run with all its processes at five moments; compare its final output with that of an undisturbed run."""
    files, whole, to = raw_files(count), RUNS / f'of_{count}', RUNS / 'killed'
    if not (whole / 'manifest.json').exists():
        measure(count)
    for folder in (to, work_folder(to)):
        shutil.rmtree(folder, ignore_errors=True)
    parts, work, temporary = count // A_GROUP, work_folder(to), to.with_name(f'.{to.name}.tmp')

    def scanned(share: float) -> bool:
        return sum(1 for _ in work.glob('*/[0-9]*.parquet')) >= share * parts

    moments = {
        'a third is scanned': lambda: scanned(1 / 3),
        'two thirds are scanned': lambda: scanned(2 / 3),
        'conversations are compared': lambda: scanned(1),
        'they are grouped': lambda: any(work.glob('*/grouped/*.arrow')),
        'records are written': lambda: any(temporary.glob('.records.jsonl.*')),
    }
    for name, reached in moments.items():
        process = start_ingest(files, to)
        while not reached():
            if process.poll() is not None:
                raise RuntimeError(f'ingest ended before {name}')
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f'killed when {name}', flush=True)
    if start_ingest(files, to).wait():
        raise RuntimeError('ingest failed after it was killed')
    made_from = [read_json(folder / 'manifest.json', '')['made_from'] for folder in (whole, to)]
    if made_from[0] != made_from[1]:
        raise RuntimeError(f'{whole} was made with other settings: remove it and run again')
    ended_in = [{path.name: file_digest(path) for path in folder.iterdir()} for folder in (whole, to)]
    left = [path.name for path in RUNS.iterdir() if path.name.startswith('.')]
    return dict(count=count, killed_when=list(moments), same_bytes=ended_in[0] == ended_in[1], left_behind=left)


def beam(count: int) -> dict:
    """Ingest one dump without Beam and with it, and compare the bytes."""
    raw, ended_in = RUNS / f'{count}.parquet', []
    write_file(raw, 0, count)
    for to, runner in ((RUNS / 'plain', ''), (RUNS / 'beam', '--runner=DirectRunner')):
        if start_ingest(str(raw), to, f'--config.beam={runner}').wait():
            raise RuntimeError(f'ingest with --config.beam={runner!r} failed')
        ended_in.append({path.name: file_digest(path) for path in to.iterdir()})
    return dict(count=count, same_bytes=ended_in[0] == ended_in[1], counts=counts_of(RUNS / 'beam'))


def mutate(count: int) -> dict:
    rng, raw, to = Random(0), RUNS / 'mutated.jsonl', RUNS / 'mutated'
    raw.parent.mkdir(parents=True, exist_ok=True)
    with open(raw, 'wb') as file:
        for n in range(count):
            turns = [('user', f'What is {n * 7919} of {n}?'), ('assistant', 'So.')] * 2
            file.write(mutated(wildchat_record(dict(id=f'u{n % 5000}'), turns, n % 999, 'model'), rng) + b'\n')
    salt = Path('.cache/ingest_salt')
    if start_ingest(str(raw), to, f'--config.ingest.salt={salt}', '--config.ingest.max_characters=0').wait():
        raise RuntimeError('ingest of mutated records failed')
    counts = counts_of(to)
    sorted_out = sum(n for name, n in counts.items() if name.startswith(('kept_', 'dropped_')))
    adds_up = count == counts['records_read'] == sorted_out
    return dict(adds_up=adds_up, gib=raw.stat().st_size / 2**30, counts=counts)


def main(_):
    sizes = [int(size) for size in flags.FLAGS.sizes.split(',')]
    if flags.FLAGS.kill:
        results = dict(killed=killed(sizes[-1]))
    elif flags.FLAGS.mutated:
        results = dict(mutated=mutate(MUTATED))
    elif flags.FLAGS.beam:
        results = dict(beam=beam(BEAM))
    else:
        results = {str(size): measure(size) for size in sizes}
        results['growth'] = results[str(sizes[-1])]['peak_gib'] / results[str(sizes[0])]['peak_gib'] - 1
    write_json(RESULTS, (read_json(RESULTS, '') if RESULTS.exists() else {}) | results)
    print(json.dumps(results, indent=1))


if __name__ == '__main__':
    flags.DEFINE_string('sizes', '100000,1000000', 'Conversations, smallest first.')
    flags.DEFINE_bool('kill', False, 'Kill the largest at five moments instead.')
    flags.DEFINE_bool('mutated', False, 'Read mutated records instead.')
    flags.DEFINE_bool('beam', False, 'Compare with a Beam pipeline instead.')
    app.run(main)
