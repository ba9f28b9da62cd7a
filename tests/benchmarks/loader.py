"""How fast the loader alone makes rows, in one thread on one core: tokens and rows a second.

python tests/benchmarks/loader.py --shards=DIR    shards of SmolLM2's; writes results/loader.json
"""

import argparse
import os
import time
from pathlib import Path

import jax

from rlhi_jax.data.loader import RowOrder, RowReader, batches
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.files import write_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.tokenizers.template import ChatTemplate

SECONDS = 20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--shards', required=True, type=Path)
    parser.add_argument('--model', default='runs/smollm2')
    args = parser.parse_args()
    jax.devices()
    os.sched_setaffinity(0, {0})
    template, shards = ChatTemplate.load(open_model(args.model).tokenizer_path), Shards(args.shards)
    plan = make_plan(shards, template, Capacities(1024, 1024, 8))
    reader = RowReader(plan, shards, template)
    order = RowOrder(len(plan.rows), 4, 1000, 0)
    stream = batches(reader.__getitem__, order, first_step=0, num_steps=order.num_steps, local_rows=range(4), threads=1)
    next(stream)
    start, tokens, rows = time.monotonic(), 0, 0
    while (seconds := time.monotonic() - start) < SECONDS:
        batch = next(stream)
        tokens += int(((batch.back_BT != 0) | (batch.extent_BT > 1)).sum())
        rows += len(batch.tokens_BT)
    result = dict(tokens_per_second=tokens / seconds, rows_per_second=rows / seconds, rows=len(plan.rows))
    write_json(Path(__file__).parent / 'results' / 'loader.json', result)
    print(result)


if __name__ == '__main__':
    main()
