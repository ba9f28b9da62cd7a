"""One round of RLHI from forty made-up conversations, with recorded answers of a teacher: examples/README.md.

Result: a reward model and a policy as Hugging Face folders, and a report. The example shows what each stage makes from
a team's conversations. Its figures are not evidence.
Hardware and time: two CPU cores, about three minutes.
Command, in the root of the repository:

    make example
"""

from rlhi_jax.config import base_config, on_two_cores


def get_config():
    c = base_config()
    on_two_cores(c)  # first, so that what follows wins; a real run needs more of everything (configs/wildchat.py)
    c.data.raw = 'examples/conversations.jsonl'
    c.model.path = 'runs/smollm2'
    c.teacher.path, c.teacher.model = 'http://localhost:8123/v1', 'qwen2.5-coder-1.5b-instruct'
    c.teacher.cache = 'examples/answers.jsonl'  # recorded, so nothing is sent to the teacher
    c.follow_ups.labeller = 'policy'  # the teacher labels every turn `clarification`
    c.ingest.heldout = 0.4  # of the six users, two are held out
    c.rewrites.regenerate = False  # a rewrite is compared with the reply that the user saw
    c.train.max_steps = 2
    c.loop.gate = False  # two people are too few for an interval
    return c
