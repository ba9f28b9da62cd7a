"""One round of RLHI with SmolLM2-135M, from the complaints of simulated users: what `make demo` runs.

    --config=configs/demo.py          the demo
    --config=configs/demo.py:smoke    fewer requests and one step, in three minutes

The users' conversations with the model, and a teacher's answers about them, are recorded in `examples/simulated`. The
pairs are rewrites; `examples/config.py` also trains a reward model and chooses among sampled replies.

Result: a policy as a Hugging Face folder, and a report that says how well the policy follows the personas of 24 new
users before and after training. The report's figures are not evidence, so they are not recorded.
Hardware and time: two CPU cores, about seven minutes.
Command:

    python -m rlhi_jax.loop --config=configs/demo.py --workdir=runs/demo
"""

from rlhi_jax.config import base_config, on_two_cores, parse_variant


def get_config(variant: str = ''):
    c = base_config()
    on_two_cores(c)
    c.model.path = 'runs/smollm2'
    c.teacher.path, c.teacher.model = 'http://localhost:8123/v1', 'qwen2.5-coder-1.5b-instruct'
    c.teacher.cache = 'examples/simulated/answers.jsonl'  # recorded, so nothing is sent to the teacher
    c.follow_ups.labeller = 'policy'  # this small teacher would label every turn `clarification`
    c.loop.method = 'rewrites'
    c.loop.simulated = True
    c.loop.gate = False  # to end within ten minutes
    c.data.raw = 'examples/simulated/conversations'
    c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 20, 12, 24
    c.simulated.tastes = 'length,layout,angle'
    c.simulated.conversations, c.simulated.prompts = 3, 4
    c.satisfaction.personas = 'stated'
    c.sampler.slots = 48
    c.sampler.prompt_tokens = 96
    c.personas.max_claims = 4
    c.rewrites.regenerate = False  # the simulated replies are the policy's own
    c.teacher.row_tokens, c.rows.tokens, c.rows.scored = 640, 640, 512  # some replies are long
    c.train.accumulate = 1
    if parse_variant(variant).smoke:
        c.satisfaction.max_prompts = 8
        c.train.max_steps = 1
    return c
