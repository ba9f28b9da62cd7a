"""Does a model learn what its users like from their complaints? Simulated users, a 1.5B teacher, SmolLM2-135M.

    --config=configs/evidence.py          complaints, inferred personas, and answers under two users' wishes
    --config=configs/evidence.py:smoke    a few users, in minutes

The teacher, Qwen2.5-Coder-1.5B-Instruct, writes the replies that the users complain about, says what each complaint
says about its author, and answers requests under the wishes of two users. `person` is a taste of test users alone.

Endpoint, fixed before the campaign with test users: the gap G of test users is their satisfaction under their own
inferred persona minus that under an opposing user's. The claim is that DPO after the warm start raises G over the base
model by at least 0.25, with the lower 95 % bound above 0.15, and the gap among valid replies by at least 0.15. Users
with a held-out taste have rows of their own. Left out are requests whose user, or whose opposing user, has no inferred
persona. If a bound fails, the README says so. Settings of the policy are chosen on training and validation users alone.

Results so far, with one seed:

- `tests/benchmarks/results/reward_users.json`: of 174 counterfactual pairs of training users, 0.70 [0.61, 0.78] are
  right by the checkers and 0.04 [0.01, 0.08] wrong. A reward model trained on them prefers what new users want in 0.67
  [0.58, 0.76] of 158 counterbalanced pairs, and in 0.50 without persona.
- `tests/benchmarks/results/policy_users.json`, a pilot: on the same pairs, the warm start and DPO raise the gap of 37
  validation users by 0.144 [0.049, 0.245], and the gap among valid replies by 0.266 [0.097, 0.440]. The rise in the gap
  is below the bound of 0.25.

Hardware and time: two CPU cores; `bash launch/teacher.sh FILE 8133` serves the teacher. Two hours to the pairs, and
half an hour for the pilot.
Command: `bash launch/evidence.sh`
"""

from rlhi_jax.config import base_config, parse_variant


def get_config(variant: str = ''):
    c = base_config()
    c.model.path, c.model.dtype = 'runs/smollm2', 'float32'  # not every CPU has bfloat16 instructions
    c.teacher.path, c.teacher.model = 'http://localhost:8133/v1', 'qwen2.5-coder-1.5b-instruct'
    c.teacher.concurrency = 24
    c.teacher.cache = 'runs/evidence/answers.sqlite'
    c.teacher.row_tokens = 640
    c.loop.simulated = True
    c.simulated.tastes, c.simulated.held_out = 'length,layout,address,angle,theme', 'person'
    c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 100, 40, 60
    c.simulated.conversations, c.simulated.prompts = 4, 4
    c.simulated.replies, c.simulated.contrary = 'teacher', True
    c.follow_ups.labeller = 'policy'  # the teacher would label every turn `clarification`
    c.sampler.temperature, c.sampler.new_tokens, c.sampler.prompt_tokens = 0.7, 160, 384
    c.personas.samples = 2
    c.rewrites.shows_reply, c.rewrites.min_words, c.rewrites.max_words = False, 20, 60
    c.strangers.max_claims, c.strangers.samples, c.strangers.min_contrast = 120, 4, 5.0
    c.pairs.sources, c.pairs.against = 'rewrites', 'stranger'
    c.rows.tokens, c.rows.scored, c.rows.pairs = 640, 512, 4
    c.train.batch_rows, c.train.accumulate, c.train.epochs = 4, 4, 4
    c.optimizer.learning_rate, c.optimizer.schedule, c.optimizer.clip = 5e-5, 'linear', 1.0
    c.optimizer.warmup_steps = 5
    c.loop.method = 'rewrites'
    c.loop.sft.epochs, c.loop.sft.learning_rate = 5, 1e-4
    c.loop.dpo.epochs, c.loop.dpo.learning_rate = 2, 3e-5
    if parse_variant(variant).smoke:
        c.loop.smoke = True
        c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 10, 2, 12
        c.pairs.accept_artefacts, c.pairs.min_pairs = True, 1
        c.train.max_steps = 1
    return c
