"""`make demo`: SmolLM2-135M on made-up preferences of opposite users, a few minutes on two cores. Smoke, not evidence.

--config=configs/demo.py:reward    reward model, 15 steps; --config=configs/demo.py:dpo    policy, 8 steps
"""

from rlhi_jax.config import base_config


def get_config(objective: str = 'dpo'):
    c = base_config()
    c.objective = objective
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'
    c.model.new_head = objective == 'reward'
    c.data.pairs = 'runs/demo/pairs/train.jsonl'
    c.data.shards = 'runs/demo/shards'
    c.data.rows = 'runs/demo/rows'
    c.eval.shards = 'runs/demo/heldout'
    c.eval.batch_rows = 4
    c.rows.tokens = 256
    c.rows.scored = 128
    c.rows.pairs = 4
    c.train.batch_rows = 4
    c.train.epochs = 2
    c.train.max_steps = 0 if objective == 'reward' else 8
    c.optimizer.clip = 1.0
    c.optimizer.learning_rate = 5e-5 if objective == 'reward' else 2e-5
    c.dpo.beta = 0.1
    return c
