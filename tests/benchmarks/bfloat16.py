"""How much faster a CPU with bfloat16 instructions takes a DPO step of SmolLM2-135M in bfloat16 than in float32.

    python tests/benchmarks/bfloat16.py --model=runs/smollm2

The step has four rows of 640 tokens, each with two pairs that have a prompt of 200 tokens and replies of 60. Steps are
taken in turn, with two remat policies; the faster policy of each dtype is compared. Writes `results/bfloat16.json`.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from rlhi_jax.config import base_config
from rlhi_jax.data.rows import Capacities, TokenNode, TokenPair, TokenTree, lay_out, pack, stack
from rlhi_jax.io.files import write_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import load_params
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.training.step import make_gradient

MODEL = flags.DEFINE_string('model', 'runs/smollm2', 'Folder of the imported model.')
RESULTS = Path(__file__).parent / 'results' / 'bfloat16.json'
ROWS, TOKENS, ROUNDS, POLICIES = 4, 640, 2, ('save_all', 'save_attention')


def batch(vocab_size: int):
    rng = np.random.default_rng(0)

    def tree(first: int) -> TokenTree:
        prompt, chosen, rejected = (tuple(rng.integers(3, vocab_size, count).tolist()) for count in (200, 60, 60))
        nodes = [TokenNode(-1, prompt), TokenNode(0, chosen, 60), TokenNode(0, rejected, 60)]
        return TokenTree(nodes, [[1], [2]], [TokenPair(0, 1, 1.0, 0.0, first)])

    rows = [pack([lay_out(tree(0)), lay_out(tree(1))], Capacities(TOKENS, 256, 2)) for _ in range(ROWS)]
    zeros = np.zeros(len(rows[0].reply_last_R), np.float32)
    return jax.tree.map(jnp.asarray, stack([row._replace(reference_logp_R=zeros) for row in rows]))


def main(_):
    model, mesh = open_model(MODEL.value), make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    data, hyper = batch(model.spec.vocab_size), base_config().dpo
    with on_mesh(mesh):
        params = load_params(Decoder(model.spec), model, mesh, seed=0)
        steps = {}
        for dtype in ('float32', 'bfloat16'):
            for remat in POLICIES:
                decoder = Decoder(model.spec, dtype=jnp.dtype(dtype), remat=remat)
                gradient = make_gradient(decoder, OBJECTIVES['dpo'], hyper, accumulate=ROWS, chunk=128)
                steps[dtype, remat] = jax.jit(lambda params, data, gradient=gradient: gradient(params, data))
        seconds = {name: [] for name in steps}
        for number in range(ROUNDS + 1):
            for name, step in steps.items():
                start = time.monotonic()
                jax.block_until_ready(step(params, data))
                if number:  # the first step compiles
                    seconds[name].append(time.monotonic() - start)
                    print(name, f'{seconds[name][-1]:.2f} s', flush=True)
    median = {f'{dtype} {remat}': float(np.median(times)) for (dtype, remat), times in seconds.items()}
    fastest = {
        dtype: min(s for name, s in median.items() if name.startswith(dtype)) for dtype in ('float32', 'bfloat16')
    }
    ratio = fastest['float32'] / fastest['bfloat16']
    write_json(RESULTS, dict(median_seconds=median, rounds=ROUNDS, times_as_fast=ratio))
    print(f'bfloat16 is {ratio:.2f} times as fast')


if __name__ == '__main__':
    app.run(main)
