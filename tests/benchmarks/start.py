"""From starting `rlhi_jax.train` to its first optimizer step, with an empty compilation cache and with a warm one.

python tests/benchmarks/start.py --shards=DIR    shards of SmolLM2's; writes results/start.json

One row per step. Both figures include the reference pass and the step itself, so their difference is what the cache
saves. The second step shows how long a step takes.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rlhi_jax.io.files import write_json

RUN = Path('runs/start')
COMMON = ('--config=configs/mt_bench.py:dpo', '--config.rows.scored=768')


def program(module: str, *flags: str) -> list[str]:
    return [sys.executable, '-m', module, *COMMON, *flags]


def first_step(shards: Path) -> dict[str, float]:
    """Seconds until the first step's metrics are written, and from there to the second's."""
    workdir = RUN / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    flags = (f'--config.data.shards={shards}', f'--config.data.rows={RUN / "rows"}', f'--workdir={workdir}')
    limits = ('--config.train.batch_rows=1', '--config.train.accumulate=1', '--config.train.max_steps=2')
    cache = f'--config.compilation_cache={RUN / "compiled"}'
    start, seen = time.monotonic(), []
    process = subprocess.Popen(program('rlhi_jax.train', *flags, *limits, cache))
    metrics = workdir / 'metrics.jsonl'
    while len(seen) < 2:
        ended = process.poll() is not None
        lines = metrics.read_text().count('\n') if metrics.exists() else 0
        if ended and lines < 2:
            raise RuntimeError(f'training ended with status {process.returncode} and {lines} steps')
        seen += [time.monotonic() - start] * (lines - len(seen))
        time.sleep(0.05)
    process.wait()
    return dict(first_step=seen[0], second_step=seen[1] - seen[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--shards', required=True, type=Path)
    args = parser.parse_args()
    shutil.rmtree(RUN, ignore_errors=True)
    flags = (f'--config.data.shards={args.shards}', f'--config.data.rows={RUN / "rows"}')
    subprocess.run(program('data_pipelines.rows', *flags), check=True)
    first_step(args.shards)  # loads the model's files into the page cache
    shutil.rmtree(RUN / 'compiled')
    results = dict(empty_cache=first_step(args.shards), warm_cache=first_step(args.shards))
    write_json(Path(__file__).parent / 'results' / 'start.json', results)
    print(results)


if __name__ == '__main__':
    main()
