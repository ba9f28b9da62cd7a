"""Our train step on the same pairs, one process per measurement; see `compare.py`.

python ours.py --task=dpo --model=DIR --shards=DIR --to=OUT --tokens=2304 --scored=1792 --pairs=8 --rows=1 [--check]
"""

import argparse
import json
import resource
import time
from pathlib import Path

import jax
import numpy as np

from rlhi_jax.config import base_config
from rlhi_jax.config.checks import check_config
from rlhi_jax.conversion.layout import flattened, placements
from rlhi_jax.cost.flops import Work, train_flops
from rlhi_jax.data.loader import RowReader, in_order
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Batch, capacities, stack
from rlhi_jax.data.shards import Shards, View
from rlhi_jax.models import attention_xla
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.parameters import load_params, split_params
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel.sharding import batch_sharding, make_mesh, on_mesh, to_global
from rlhi_jax.scoring.pairs import score_replies
from rlhi_jax.scoring.rows import jit_score
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.model import make_decoder, with_adapters
from rlhi_jax.training.step import TrainState, jit_train_step, make_gradient, make_optimizer


def settings(args) -> object:
    c = base_config()
    c.objective = args.task
    c.model.path = args.model
    c.model.dtype = args.dtype
    c.model.remat = args.remat
    c.rows.tokens, c.rows.scored, c.rows.pairs = args.tokens, args.scored, args.pairs
    c.train.batch_rows = c.train.accumulate = args.rows
    c.optimizer.learning_rate = 1e-4 if args.check else 1e-6
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    c.lora.rank = args.lora
    return check_config(c)


def groups(config, shards, template, size: int | None, steps: int) -> tuple[RowReader, list[list[int]]]:
    """Row numbers of each step: packed over all pairs, or `size` trees per step, packed by themselves."""
    limits = capacities(config)

    def packed(trees: Shards | View) -> RowReader:
        plan = make_plan(trees, template, limits)
        if len(plan.pair_names) < plan.counts['pairs_read']:
            raise ValueError(f'not every pair fits {limits}: {plan.counts}')
        return RowReader(plan, trees, template)

    if size is None:
        reader = packed(shards)
        return reader, in_order(range(len(reader)), config.train.batch_rows)
    starts = range(0, steps * size, size)
    readers = [packed(View(shards, range(start, start + size), lambda tree: tree, f'{start}')) for start in starts]
    most = max(len(reader) for reader in readers)
    return readers, [[*range(len(reader)), *[-1] * (most - len(reader))] for reader in readers]


def work_of(batch: Batch, replies: int) -> Work:
    """What is computed for a batch without its padding, which a single root token would be: no tree is one."""
    is_token = ~((batch.back_BT == 0) & (batch.extent_BT == 1))
    scored = int((batch.slot_reply_BS < replies).sum())
    return Work(int(is_token.sum()), scored, int(batch.extent_BT[is_token].sum()))


def matmul_gflops() -> float:
    """The best rate of a float32 matrix product of 2,048 by 2,048: what this machine can do."""
    a, product = jax.numpy.ones((2048, 2048)), jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    seconds = []
    for _ in range(10):
        start = time.monotonic()
        jax.block_until_ready(product(a))
        seconds.append(time.monotonic() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def main():
    parser = argparse.ArgumentParser()
    for name in ('task', 'model', 'shards', 'to'):
        parser.add_argument(f'--{name}', required=True)
    for name in ('tokens', 'scored', 'pairs', 'rows'):
        parser.add_argument(f'--{name}', type=int, required=True)
    parser.add_argument('--remat', default='save_dots')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--lora', type=int, default=0, help='Rank of adapters; 0: all parameters are trained.')
    parser.add_argument('--check', type=int, help='Trees per step; compare numbers instead of speed.')
    parser.add_argument('--steps', type=int, default=5, help='How many steps to compare.')
    args = parser.parse_args()
    config = settings(args)
    model = open_model(args.model)
    template, shards = ChatTemplate.load(model.tokenizer_path), Shards(Path(args.shards))
    readers, order = groups(config, shards, template, args.check, args.steps)
    if args.check:
        config.train.batch_rows = config.train.accumulate = len(order[0])
    mesh, decoder = make_mesh(config.mesh.to_dict()), with_adapters(make_decoder(config, model), config)
    objective = OBJECTIVES[config.objective]
    result: dict = dict(seconds=[], reference_seconds=[], pairs=[], losses=[], tokens=[], flops=[], scores=[])
    with on_mesh(mesh):
        params, frozen = split_params(decoder, load_params(decoder, model, mesh, seed=0))
        score = jit_score(config, decoder, mesh)
        optimizer = make_optimizer(config.optimizer, len(order))
        state = TrainState(jax.numpy.int32(0), params, jax.jit(optimizer.init)(params))
        state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.P()))
        reference = None
        if objective.uses_reference:
            reference = frozen or jax.tree.map(lambda x: x.copy(), state.params)
        step_fn, compiled = jit_train_step(config, decoder, state, mesh, len(order)), None
        for number, rows in enumerate(order):
            reader = readers[number] if args.check else readers
            start = time.monotonic()
            local = stack([reader[row] for row in rows])
            if reference is not None:  # one row at a time, as the step takes them
                parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], local) for i in range(len(rows))]
                sharding = batch_sharding(mesh)
                scored = [score(reference, to_global(part, [0], sharding, 1)) for part in parts]
                local = local._replace(reference_logp_BR=np.concatenate([np.asarray(x) for x in scored]))
            result['reference_seconds'].append(time.monotonic() - start)
            batch = to_global(local, range(len(rows)), batch_sharding(mesh), len(rows))
            if args.check and number == 0:
                params = state.params, frozen
                result['scores'] = first_gradient(config, decoder, objective, *params, batch, Path(args.to))
            compiled = compiled or step_fn.lower(state, batch, frozen).compile()
            start = time.monotonic()
            state, metrics = compiled(state, batch, frozen)
            result['losses'].append(float(metrics['loss']))
            result['seconds'].append(time.monotonic() - start)
            result['pairs'].append(int(metrics['pairs']))
            work = work_of(local, config.rows.pairs * 2)
            result['tokens'].append(work.tokens)
            how = dict(attention_products=attention_xla.PRODUCTS, lora=decoder.lora)
            train = train_flops(decoder.spec, work, args.remat, **how)
            result['flops'].append(train)
    result['peak_gib'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result['matmul_gflops'] = matmul_gflops()
    Path(args.to).write_text(json.dumps(result))


def first_gradient(config, decoder, objective, params, frozen, batch, to: Path) -> list[float]:
    """Write the gradient of a batch by the names of Hugging Face's parameters; scores of its pairs, chosen first.

    The initial adapters of the two programs differ, so gradients are compared only where all parameters are trained.
    """
    how = dict(accumulate=config.train.accumulate, chunk=config.model.logprob_chunk)
    spec, named = decoder.spec, {}
    if not frozen:
        grads, _ = jax.jit(make_gradient(decoder, objective, config[config.objective], **how))(params, batch)
        flat = flattened(jax.device_get(grads), spec)
        for leaf, layer in placements(spec):
            whole = flat[leaf.path]
            named[leaf.hf[0].format(layer)] = leaf.to_stored(whole if layer is None else whole[layer], spec)
    np.savez(f'{to}.npz', **named)
    replies = score_replies(decoder, frozen | params, batch, chunk=config.model.logprob_chunk)
    scores = np.asarray(replies.reward_BR if decoder.spec.head == 'reward' else replies.logp_BR)
    ids, chosen, rejected = map(np.asarray, (batch.pair_id_BP, batch.pair_chosen_BP, batch.pair_rejected_BP))
    by_pair = {
        int(ids[row, slot]): (float(scores[row, chosen[row, slot]]), float(scores[row, rejected[row, slot]]))
        for row, slot in np.argwhere(ids >= 0)
    }
    return [by_pair[pair][side] for side in (0, 1) for pair in sorted(by_pair)]


if __name__ == '__main__':
    main()
