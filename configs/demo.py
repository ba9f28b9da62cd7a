"""The whole RLHI loop with SmolLM2-135M and simulated users: what `make demo` runs.

    --config=configs/demo.py          the demo
    --config=configs/demo.py:smoke    fewer users and shorter replies, in two or three minutes

Result: a reward model and a policy as Hugging Face folders, and a report. The demo shows that the loop runs. Its
figures are not evidence, so they are not recorded.
Hardware and time: two CPU cores, about ten minutes.
Command:

    python -m rlhi_jax.loop --config=configs/demo.py --workdir=runs/demo
"""

from rlhi_jax.config import base_config, parse_variant


def get_config(variant: str = ''):
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # a CPU gains little from bfloat16
    c.loop.simulated = True
    c.loop.smoke = True
    c.loop.reward.learning_rate = 2e-5
    c.loop.dpo.learning_rate = 1e-5
    c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 12, 6, 12
    c.simulated.tastes = 'length,layout,angle'
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
    c.pairs.min_pairs = 4  # a small model makes few pairs from 32 turns
    c.rows.tokens = 384
    c.rows.scored = 256
    c.rows.pairs = 4
    c.train.batch_rows = 4
    c.train.accumulate = 4
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    c.eval.batch_rows = 2
    c.satisfaction.conditions = 'own,other,empty'
    if parse_variant(variant).smoke:
        c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 6, 2, 4
        c.simulated.conversations = 2
        c.sampler.new_tokens = 96
        c.rewrites.max_turns = 12
        c.candidates.samples = 2
        c.candidates.max_prompts = 6
        c.pairs.min_pairs = 1
        c.train.max_steps = 2
    return c
