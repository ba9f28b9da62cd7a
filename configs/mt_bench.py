"""SmolLM2-135M on MT-Bench's human votes, one fold of questions held out: a real reward model and policy on two cores.

    --config=configs/mt_bench.py:reward     Bradley-Terry with the judge's persona
    --config=configs/mt_bench.py:dpo        DPO with the judge's persona
    --config=configs/mt_bench.py:reward,smoke   a few steps of the same

Run by `launch/mt_bench.sh`; results in the README.
"""

from rlhi_jax.config import base_config


def get_config(variant: str = 'dpo'):
    c = base_config()
    objective, *smoke = variant.split(',')
    if smoke not in ([], ['smoke']):
        raise ValueError(f'no variant {variant!r}: choose from the list above')
    c.objective = objective
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # a CPU gains little from bfloat16
    c.model.new_head = c.objective == 'reward'
    c.data.pairs = 'runs/mt_bench/pairs/train.jsonl'
    c.data.shards = 'runs/mt_bench/shards'
    c.data.rows = 'runs/mt_bench/rows'
    c.eval.shards = 'runs/mt_bench/heldout'
    c.rows.tokens = 1024
    c.rows.scored = 1024
    c.rows.pairs = 8
    c.train.batch_rows = 4
    c.train.accumulate = 4
    c.train.max_steps = 40 if c.objective == 'reward' else 20
    c.optimizer.clip = 1.0
    c.optimizer.schedule = 'linear'
    c.optimizer.warmup_steps = 5
    c.optimizer.learning_rate = 3e-5 if c.objective == 'reward' else 5e-6
    c.dpo.beta = 0.1
    c.eval.batch_rows = 1
    c.eval.max_trees = 48 if c.objective == 'reward' else 32  # minutes, not hours, on two cores
    c.checkpoint.every_steps = 10
    if smoke:
        c.train.max_steps = 3
    return c
