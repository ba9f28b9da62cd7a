"""`make demo`: the whole RLHI loop on simulated users with SmolLM2-135M, minutes on two cores. Smoke, not evidence."""

from rlhi_jax.config import base_config


def get_config():
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # a CPU gains little from bfloat16
    c.loop.simulated = True
    c.loop.smoke = True
    c.loop.reward.learning_rate = 2e-5
    c.loop.dpo.learning_rate = 1e-5
    c.simulated.users.train, c.simulated.users.gate, c.simulated.users.test = 12, 6, 12
    c.simulated.pairs = 'length,layout,angle'
    c.simulated.conversations = 3
    c.simulated.prompts = 1
    c.sampler.slots = 32
    c.sampler.prompt_tokens = 256
    c.sampler.new_tokens = 160
    c.sampler.temperature = 0.7
    c.teacher.row_tokens = 512
    c.personas.max_claims = 4
    c.rewrites.regenerate = False  # the simulated replies are the policy's own
    c.rewrites.max_turns = 32
    c.rewrites.samples = 2
    c.candidates.samples = 4
    c.candidates.max_prompts = 16
    c.pairs.accept_artefacts = True
    c.pairs.min_pairs = 4  # of 32 turns at most, by a small model
    c.rows.tokens = 384
    c.rows.scored = 256
    c.rows.pairs = 4
    c.train.batch_rows = 4
    c.train.accumulate = 4
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    c.eval.batch_rows = 2
    c.satisfaction.conditions = 'own,opposing,empty'
    return c
