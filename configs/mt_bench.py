"""A reward model and a policy trained on MT-Bench's human votes: SmolLM2-135M, one fold of questions held out.

    --config=configs/mt_bench.py:reward         Bradley-Terry with the judge's persona
    --config=configs/mt_bench.py:dpo            DPO with the judge's persona
    --config=configs/mt_bench.py:reward,smoke   three steps and a few pairs, in minutes; dpo,smoke likewise

Result (`tests/benchmarks/results/mt_bench.json`): held-out accuracy is 0.730 [0.614, 0.821] for the reward model and
0.784 [0.672, 0.889] for the policy. Another judge's persona works as well as the judge's own.
Hardware and time: two CPU cores, about an hour for both.
Commands (`launch/mt_bench.sh` first makes the shards and rows, then runs these commands):

    python -m rlhi_jax.train --config=configs/mt_bench.py:reward --workdir=runs/mt_bench/reward
    python -m rlhi_jax.evaluate --config=configs/mt_bench.py:reward --workdir=runs/mt_bench/reward
"""

from rlhi_jax.config import base_config, parse_variant


def get_config(variant: str = ''):
    objective, smoke = parse_variant(variant, ('dpo', 'reward'))
    is_reward = objective == 'reward'
    c = base_config()
    c.objective = objective
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # not every CPU has bfloat16 instructions
    c.model.new_head = is_reward
    c.data.pairs = 'runs/mt_bench/pairs/train.jsonl'
    c.data.shards = 'runs/mt_bench/shards'
    c.data.rows = 'runs/mt_bench/rows'
    c.eval.shards = 'runs/mt_bench/validation'
    c.rows.tokens = 1024
    c.rows.scored = 1024
    c.rows.pairs = 8
    c.train.batch_rows = 4
    c.train.accumulate = 4
    c.train.max_steps = 40 if is_reward else 20
    c.optimizer.clip = 1.0
    c.optimizer.schedule = 'linear'
    c.optimizer.warmup_steps = 5
    c.optimizer.learning_rate = 3e-5 if is_reward else 5e-6
    c.dpo.beta = 0.1
    c.eval.batch_rows = 1
    c.eval.max_trees = 48 if is_reward else 32  # the evaluation takes minutes on two cores
    c.checkpoint.every_steps = 10
    if smoke:
        c.train.max_steps = 3
        c.eval.max_trees = 4
    return c
