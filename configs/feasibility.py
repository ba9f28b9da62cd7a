"""Can SmolLM2-135M learn to use a persona? Simulated users, three tastes with two opposite sides each, DPO.

    --config=configs/feasibility.py:oracle       users state what they like; checkers pick the best and worst reply of 6
    --config=configs/feasibility.py:inferred     the same, but personas are inferred from earlier conversations
    --config=configs/feasibility.py:complaints   inferred personas, and pairs made only from complaints
    --config=configs/feasibility.py:oracle,smoke   a few replies and pairs, in two minutes; also for the other variants

Result (`tests/benchmarks/results/feasibility.json`): in the oracle variant, training raises the gap (satisfaction under
a user's own persona minus satisfaction under another user's persona) by 0.175 [0.067, 0.300]. In the other two
variants, the gap does not rise.
Hardware and time: two CPU cores, about half an hour for each variant.
Command (`launch/feasibility.sh` runs all three):

    python -m rlhi_jax.loop --config=configs/feasibility.py:oracle --workdir=runs/feasibility/oracle
"""

from rlhi_jax.config import base_config, parse_variant


def get_config(variant: str = ''):
    arm, smoke = parse_variant(variant, ('oracle', 'inferred', 'complaints'))
    oracle = arm == 'oracle'
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # not every CPU has bfloat16 instructions
    c.loop.simulated = True
    c.loop.method = 'rewrites' if arm == 'complaints' else 'oracle'
    c.loop.oracle_personas = oracle
    c.loop.dpo.epochs, c.loop.dpo.learning_rate = 2, 1e-5
    c.simulated.held_out = 'person'
    # 12 of the 36 test users have the held-out taste.
    c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 40, 8, 36
    c.simulated.conversations, c.simulated.prompts = (0, 5) if oracle else (3, 5)
    c.simulated.special_every = 0 if oracle else 9
    c.sampler.slots = 64
    c.sampler.prompt_tokens = 128 if oracle else 256
    # Replies in conversations must not be cut off: a rewrite would beat a cut-off reply by its length alone.
    c.sampler.new_tokens = 160 if oracle else 320
    c.sampler.temperature = 0.7
    c.personas.max_claims = 4
    c.rewrites.regenerate = False  # the simulated replies are the policy's own
    c.candidates.samples = 6
    c.candidates.max_prompts = 0 if oracle else 120
    c.pairs.accept_artefacts = arm == 'complaints'
    c.rows.tokens, c.rows.scored = (640, 512) if oracle else (1024, 768)
    c.rows.pairs = 4
    c.train.batch_rows = 3  # about 9 pairs
    c.train.accumulate = 3
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    if smoke:
        c.loop.smoke = True
        c.loop.dpo.epochs = 1
        c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 10, 2, 12
        c.simulated.prompts = 1
        c.sampler.new_tokens = 64
        c.pairs.accept_artefacts = True
        c.pairs.min_pairs = 1
    return c
