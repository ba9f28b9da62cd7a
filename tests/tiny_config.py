"""The default configuration, shrunk for tests; flags set the paths."""

from rlhi_jax.config import base_config


def get_config(objective: str = 'dpo'):
    c = base_config()
    c.objective = objective
    c.compilation_cache = ''  # no programs that another test compiled
    c.model.dtype = 'float32'
    c.model.new_head = objective == 'reward'
    c.model.logprob_chunk = 64
    c.rows.tokens = 512
    c.rows.scored = 256
    c.rows.pairs = 6
    c.train.batch_rows = 8
    c.optimizer.learning_rate = 1e-3
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    c.checkpoint.every_steps = 2
    c.eval.batch_rows = 8
    return c
