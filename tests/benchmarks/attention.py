"""Tree attention's peak memory and time by row length, against the dense rule; one process a measurement.

python tests/benchmarks/attention.py

A row is packed with trees of one prefix and two replies, 600 tokens each; heads as SmolLM2-135M has them, one layer,
values and gradients. Temporaries are what XLA allots; the process's peak holds inputs and JAX itself too. Writes
`results/attention.json`.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhi_jax.io.files import write_json
from rlhi_jax.models.attention import tree_attention

HEADS, KV_HEADS, WIDTH = 9, 3, 64
LENGTHS = (2048, 4096, 8192, 16384)
DENSE_LENGTHS = (2048, 4096)  # beyond, the dense rule takes more memory than this machine has to spare


def dense(q, k, v, extent):
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    seen = (distance >= 0) & (distance < extent[:, None, :])
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    logits = jnp.einsum('BQNH,BSNH->BNQS', q, k) * WIDTH**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum('BNQS,BSNH->BQNH', weights, v)


def extents(length: int) -> np.ndarray:
    tree = [*range(600, 240, -1), *range(120, 0, -1), *range(120, 0, -1)]
    row = tree * (length // len(tree))
    return np.array([row + [1] * (length - len(row))], np.int32)


def measure(kind: str, length: int) -> dict:
    """Milliseconds and MiB of one value and gradient."""
    rng = np.random.default_rng(0)
    q, d_out = (jnp.asarray(rng.normal(size=(1, length, HEADS, WIDTH)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(1, length, KV_HEADS, WIDTH)), jnp.float32) for _ in range(2))
    extent = jnp.asarray(extents(length))
    function = {'tree': tree_attention, 'dense': dense}[kind]

    def both(q, k, v, extent, d_out):
        out, pull = jax.vjp(lambda q, k, v: function(q, k, v, extent), q, k, v)
        return out, pull(d_out)

    compiled = jax.jit(both).lower(q, k, v, extent, d_out).compile()
    seconds = []
    for _ in range(5):
        start = time.monotonic()
        jax.block_until_ready(compiled(q, k, v, extent, d_out))
        seconds.append(time.monotonic() - start)
    return dict(
        milliseconds=1000 * float(np.median(seconds[1:])),
        temporaries_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        process_peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main():
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    results: dict = {}
    for kind, lengths in (('tree', LENGTHS), ('dense', DENSE_LENGTHS)):
        for length in lengths:
            command = [sys.executable, __file__, kind, str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.setdefault(kind, {})[str(length)] = json.loads(done.stdout)
            print(kind, length, results[kind][str(length)], flush=True)
    short, long = (results['tree'][str(length)]['temporaries_mib'] for length in (LENGTHS[0], LENGTHS[-1]))
    results['memory_per_token_long_against_short'] = long / short / (LENGTHS[-1] / LENGTHS[0])
    tree, plain = (results[kind]['4096']['milliseconds'] for kind in ('tree', 'dense'))
    results['speed_against_dense_at_4096'] = plain / tree
    write_json(Path(__file__).parent / 'results' / 'attention.json', results)


if __name__ == '__main__':
    main()
