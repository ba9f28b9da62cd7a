"""One round of RLHI from forty made-up conversations, with recorded answers of a teacher: examples/README.md.

Result: a reward model and a policy as Hugging Face folders, and a report. The example shows what each stage makes from
a team's conversations. Its figures are not evidence.
Hardware and time: two CPU cores, about three minutes.
Command, in the root of the repository:

    make example
"""

from rlhi_jax.config import base_config


def get_config():
    c = base_config()
    c.data.raw = 'examples/conversations.jsonl'
    c.model.path = 'runs/smollm2'
    c.teacher.path, c.teacher.model = 'http://localhost:8123/v1', 'qwen2.5-coder-1.5b-instruct'
    c.teacher.cache = 'examples/answers.jsonl'  # recorded, so nothing is sent to the teacher
    c.ingest.heldout = 0.4  # of the six users, two are held out
    c.follow_ups.labeller, c.follow_ups.head = 'head', 'runs/example_head'
    c.rewrites.regenerate = False  # a rewrite is compared with the reply that the user saw
    # Sizes and steps for two cores; a real run needs more of everything (configs/wildchat.py).
    c.loop.smoke, c.model.dtype = True, 'float32'
    c.loop.reward.learning_rate, c.loop.dpo.learning_rate, c.dpo.beta, c.optimizer.clip = 2e-5, 1e-5, 0.1, 1.0
    c.sampler.temperature, c.sampler.new_tokens, c.sampler.prompt_tokens, c.sampler.slots = 0.7, 160, 256, 8
    c.personas.samples, c.rewrites.samples, c.candidates.samples, c.candidates.max_prompts = 2, 2, 2, 4
    c.teacher.row_tokens, c.rows.tokens, c.rows.scored, c.rows.pairs = 384, 384, 256, 4
    c.train.batch_rows, c.train.accumulate, c.train.max_steps, c.eval.batch_rows = 4, 4, 2, 2
    c.pairs.accept_artefacts, c.pairs.min_pairs = True, 1  # too few pairs for the probe
    return c
