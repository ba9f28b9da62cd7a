"""Can SmolLM2-135M learn to use a persona? Simulated users, three opposing pairs of tastes, DPO.

    --config=configs/feasibility.py:oracle       users say what they like; best and worst of 6 by their checkers
    --config=configs/feasibility.py:inferred     the same, but personas are inferred from earlier conversations
    --config=configs/feasibility.py:complaints   personas inferred, and pairs from complaints alone
    --config=configs/feasibility.py:oracle,smoke   a few replies and pairs of the same, in two minutes

Run by `launch/feasibility.sh`, each about half an hour on two cores; results in the README.
"""

from rlhi_jax.config import base_config


def get_config(variant: str = 'oracle'):
    c = base_config()
    variant, *smoke = variant.split(',')
    if variant not in ('oracle', 'inferred', 'complaints') or smoke not in ([], ['smoke']):
        raise ValueError(f'no variant {",".join([variant, *smoke])!r}: choose from the list above')
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # a CPU gains little from bfloat16
    c.loop.simulated = True
    c.loop.method = 'rewrites' if variant == 'complaints' else 'oracle'
    c.loop.oracle_personas = variant == 'oracle'
    c.loop.dpo.epochs, c.loop.dpo.learning_rate = 2, 1e-5
    c.simulated.held_out = 'person'
    c.simulated.users.train, c.simulated.users.gate, c.simulated.users.test = 40, 8, 36  # 12 with a held-out taste
    c.simulated.conversations, c.simulated.prompts = (0, 5) if variant == 'oracle' else (3, 5)
    c.simulated.special_every = 0 if variant == 'oracle' else 9
    c.sampler.slots = 64
    c.sampler.prompt_tokens = 128 if variant == 'oracle' else 256
    # Replies of conversations must end by themselves: what is cut off, a rewrite beats by its length.
    c.sampler.new_tokens = 160 if variant == 'oracle' else 320
    c.sampler.temperature = 0.7
    c.personas.max_claims = 4
    c.rewrites.regenerate = False  # the simulated replies are the policy's own
    c.candidates.samples = 6
    c.candidates.max_prompts = 0 if variant == 'oracle' else 120
    c.pairs.accept_artefacts = variant == 'complaints'
    c.rows.tokens, c.rows.scored = (640, 512) if variant == 'oracle' else (1024, 768)
    c.rows.pairs = 4
    c.train.batch_rows = 3  # about 9 pairs
    c.train.accumulate = 3
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    if smoke:
        c.loop.smoke = True
        c.loop.dpo.epochs = 1
        c.simulated.users.train, c.simulated.users.gate, c.simulated.users.test = 10, 2, 12
        c.simulated.prompts = 1
        c.sampler.new_tokens = 64
        c.pairs.accept_artefacts = True
        c.pairs.min_pairs = 1
    return c
