"""Can SmolLM2-135M learn to use a persona at all? Simulated users, three opposing pairs of tastes, DPO."""

from rlhi_jax.config import base_config


def get_config(variant: str = 'oracle'):
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'
    c.simulated.users.train, c.simulated.users.gate, c.simulated.users.test = 40, 0, 24
    c.simulated.conversations = 6
    c.simulated.prompts = 4
    c.sampler.slots = 64
    c.sampler.prompt_tokens = 128
    c.sampler.new_tokens = 128
    c.sampler.temperature = 0.7
    c.candidates.samples = 6
    c.pairs.sources = 'candidates'
    c.rows.tokens = 256
    c.rows.scored = 256
    c.rows.pairs = 2
    c.train.batch_rows = 8
    c.train.accumulate = 8
    c.train.epochs = 2
    c.optimizer.learning_rate = 1e-5
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    return c
