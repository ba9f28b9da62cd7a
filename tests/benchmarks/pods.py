"""DPO train steps compiled for TPU pods on this machine: what fits, what it needs of a chip, how many chips starve.

python tests/benchmarks/pods.py

First, Llama-3.1-8B on v5p:2x2x4 under each remat policy, with 16 pairs of 1,024 tokens each of prefix, chosen and
rejected reply: the setting in which peers were measured. Then a table of models, topologies, pairs per step and row
lengths, with a pair for every 1,024 tokens of a row. Last, the programs of `configs/rlhi_llama31_8b.py`: the
train step on the slice that it names, and scoring and sampling on one host of it.

Each chip has a row if there are enough rows. If not, heads are split, up to 8 ways for 8 key-value heads; a chip that
still has only padding starves. Of the policies that fit, the one that saves most is reported. Writes
`results/pods.json`, line by line.
"""

import runpy
from pathlib import Path

from absl import app

from rlhi_jax.aot import compile_report, model_spec, topology_devices
from rlhi_jax.config import base_config
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.decoder import REMAT_POLICIES
from rlhi_jax.parallel.sharding import make_mesh

HERE = Path(__file__).parent
RESULTS = HERE / 'results' / 'pods.json'
PODS = (('llama-3.1-8b', 'v5e:16x16'), ('llama-3.1-8b', 'v6e:4x4'), ('llama-3.1-70b', 'v5p:8x8x8'))
PAIRS, TOKENS, TOKENS_OF_A_PAIR = (32, 256, 2048), (4096, 32768), 1024
RECIPE = HERE.parents[1] / 'configs' / 'rlhi_llama31_8b.py'
TOPOLOGIES = dict(train='v5p:2x4x4', score='v5p:2x2x1', sample='v5p:2x2x1')  # each host scores and samples on its own
POLICIES = tuple(name for name in REMAT_POLICIES if name != 'save_all')


def config_of(tokens: int, scored: int, pairs: int, rows: int):
    c = base_config()
    c.rows.tokens, c.rows.scored, c.rows.pairs = tokens, scored, pairs
    c.train.batch_rows = rows
    return c


def report(config, model: str, topology: str, remat: str, tensor: int = 1) -> dict:
    config.model.remat = remat
    mesh = make_mesh(dict(data=1, fsdp=-1, tensor=tensor), topology_devices(topology))
    spec = model_spec(config, str(HERE / 'models' / f'{model}.json'))
    return dict(model=model, topology=topology) | compile_report('train', config, spec, mesh)


def pod(model: str, topology: str, pairs: int, tokens: int) -> dict:
    chips = len(topology_devices(topology))
    pairs_a_row = tokens // TOKENS_OF_A_PAIR
    rows = pairs // pairs_a_row
    tensor = next((n for n in (1, 2, 4) if chips // n <= rows), 8)
    shards = chips // tensor
    batch = max(shards, rows)
    for remat in POLICIES:
        config = config_of(tokens, tokens // 2, pairs_a_row, batch)
        config.train.accumulate = batch // shards
        measured = report(config, model, topology, remat, tensor)
        if measured['fits']:
            break
    return measured | dict(pairs=pairs, row_tokens=tokens, rows=rows, starving=1 - rows / batch)


def of_recipe(program: str) -> dict:
    config = runpy.run_path(str(RECIPE))['get_config']('rewards')
    topology = TOPOLOGIES[program]
    mesh = make_mesh(config.mesh.to_dict(), topology_devices(topology))
    spec = model_spec(config, str(HERE / 'models' / 'llama-3.1-8b.json'))
    return dict(model='llama-3.1-8b', topology=topology) | compile_report(program, config, spec, mesh)


def main(_):
    results = read_json(RESULTS, '') if RESULTS.exists() else {}

    def once(name: str, make) -> None:
        if name not in results:
            results[name] = make()
            write_json(RESULTS, results)
            print(name, results[name], flush=True)

    for remat in POLICIES:
        once(
            f'peers_setting {remat}',
            lambda remat=remat: report(config_of(3072, 2048, 1, 16), 'llama-3.1-8b', 'v5p:2x2x4', remat),
        )
    for model, topology in PODS:
        for tokens in TOKENS:
            for pairs in PAIRS:
                once(
                    f'{model} {topology} {pairs} pairs, rows of {tokens}',
                    lambda m=model, t=topology, p=pairs, n=tokens: pod(m, t, p, n),
                )
    for program in TOPOLOGIES:
        once(f'recipe {program}', lambda program=program: of_recipe(program))


if __name__ == '__main__':
    app.run(main)
