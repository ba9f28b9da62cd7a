"""One round of RLHI from forty made-up conversations, with recorded answers of a teacher: examples/README.md.

Result: a reward model and a policy as Hugging Face folders, and a report. The example shows what each stage makes from
a team's conversations. Its figures are not evidence.
Hardware and time: two CPU cores, about two minutes.
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
    # Two cores, two minutes:
    c.model.dtype = 'float32'
    c.loop.smoke = True
    c.loop.reward.learning_rate, c.loop.dpo.learning_rate, c.dpo.beta = 2e-5, 1e-5, 0.1
    c.personas.samples, c.rewrites.samples = 2, 2
    c.candidates.samples, c.candidates.max_prompts = 2, 6
    c.sampler.temperature = 0.7
    c.sampler.slots, c.sampler.prompt_tokens, c.sampler.new_tokens = 16, 256, 160
    c.teacher.row_tokens = 512
    c.rows.tokens, c.rows.scored, c.rows.pairs = 512, 384, 4
    c.train.batch_rows, c.train.accumulate, c.optimizer.clip = 4, 4, 1.0
    c.train.max_steps = 3
    c.eval.batch_rows = 2
    c.pairs.accept_artefacts, c.pairs.min_pairs = True, 1
    return c
