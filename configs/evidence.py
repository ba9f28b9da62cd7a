"""Does a model learn what its users like from their complaints? Simulated users, a 1.5B teacher, SmolLM2-135M.

    --config=configs/evidence.py:counterfactual   complaints, inferred personas, and answers under two users' wishes: a
                                                  warm start on the chosen ones, then DPO
    --config=configs/evidence.py:from_base        the same without the warm start
    --config=configs/evidence.py:offline          after the warm start, the best and worst of 4 replies, judged by the
                                                  policy itself under the user's persona and under strangers'
    --config=configs/evidence.py:online           the same, in rounds of 32 requests
    --config=configs/evidence.py:rewrites         rewrites against the replies that users complained about
    --config=configs/evidence.py:retries          control: the same, but the teacher does not see the complaints
    --config=configs/evidence.py:pooled           control: the policy does not see the personas
    --config=configs/evidence.py:shuffled         control: the policy sees the personas of other users
    --config=configs/evidence.py:all_users        control: 150 pairs of all users
    --config=configs/evidence.py:few_users        control: at most as many pairs, of 75 users
    --config=configs/evidence.py:counterfactual,smoke   a few users, in minutes; also for the other variants

The teacher, Qwen2.5-Coder-1.5B-Instruct, writes the replies that the users complain about, says what each complaint
says about its author, and answers requests under the wishes of two users. `person` is a taste of test users alone.

Endpoint, fixed before the campaign with test users: the gap G of test users is their satisfaction under their own
inferred persona minus that under an opposing user's. The claim is that DPO after the warm start raises G over the base
model by at least 0.25, with the lower 95 % bound above 0.15, and the gap among valid replies by at least 0.15. Users
with a held-out taste have rows of their own. Left out are requests whose user, or whose opposing user, has no inferred
persona. If a bound fails, the README says so. Settings of the policy are chosen on training and validation users alone.

Results so far, with one seed, half of the users and 120 of their claims:

- `tests/benchmarks/results/reward_users.json`: of 174 counterfactual pairs of training users, 0.70 [0.61, 0.78] are
  right by the checkers and 0.04 [0.01, 0.08] wrong. A reward model trained on them prefers what new users want in 0.67
  [0.58, 0.76] of 158 counterbalanced pairs, and in 0.50 without persona.
- `tests/benchmarks/results/policy_users.json`, a pilot: on the same pairs, the warm start and DPO raise the gap of 37
  validation users by 0.144 [0.049, 0.245], and the gap among valid replies by 0.266 [0.097, 0.440]. The rise in the gap
  is below the bound of 0.25.

Hardware and time: two CPU cores; `bash launch/teacher.sh FILE 8133` serves the teacher. About four hours to the pairs;
the time of the training runs is not known yet.
Command: `bash launch/evidence.sh`
"""

from rlhi_jax.config import base_config, parse_variant

VARIANTS = {  # the settings in which a variant differs from the first
    'counterfactual': {},
    'from_base': {'loop.sft.epochs': 0},
    'offline': {'loop.method': 'rewards', 'candidates.scorer': 'policy'},
    'online': {
        'loop.method': 'rewards',
        'candidates.scorer': 'policy',
        'online.prompts': 32,
        'optimizer.schedule': 'constant',
    },
    'rewrites': {'pairs.against': 'policy'},
    'retries': {'pairs.against': 'policy', 'rewrites.from_scratch': True},
    'pooled': {'policy_sees_persona': False, 'ref_sees_persona': False},
    'shuffled': {'data.shuffle_personas': True},
    'all_users': {'data.max_pairs': 150},
    'few_users': {'data.max_pairs': 150, 'data.max_users': 75},
}


def get_config(variant: str = ''):
    variant, smoke = parse_variant(variant, tuple(VARIANTS))
    c = base_config()
    c.model.path, c.model.dtype = 'runs/smollm2', 'float32'  # not every CPU has bfloat16 instructions
    c.teacher.path, c.teacher.model = 'http://localhost:8133/v1', 'qwen2.5-coder-1.5b-instruct'
    c.teacher.concurrency = 24
    c.teacher.cache = 'runs/evidence/answers.sqlite'
    c.teacher.row_tokens = 640
    c.loop.simulated = True
    c.simulated.tastes, c.simulated.held_out = 'length,layout,address,angle,theme', 'person'
    c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 200, 40, 120
    c.simulated.conversations, c.simulated.prompts = 4, 4
    c.simulated.replies, c.simulated.contrary = 'teacher', True
    c.follow_ups.labeller = 'policy'  # the teacher would label every turn `clarification`
    c.sampler.temperature, c.sampler.new_tokens, c.sampler.prompt_tokens = 0.7, 160, 384
    c.personas.samples = 2
    c.rewrites.shows_reply, c.rewrites.min_words, c.rewrites.max_words = False, 20, 60
    c.strangers.samples, c.strangers.min_contrast = 4, 5.0
    c.pairs.sources, c.pairs.against = 'rewrites', 'stranger'
    c.rows.tokens, c.rows.scored, c.rows.pairs = 640, 512, 4
    c.train.batch_rows, c.train.accumulate, c.train.epochs = 4, 4, 4
    c.optimizer.learning_rate, c.optimizer.schedule, c.optimizer.clip = 5e-5, 'linear', 1.0
    c.optimizer.warmup_steps = 5
    c.loop.method = 'rewrites'
    c.loop.sft.epochs, c.loop.sft.learning_rate = 5, 1e-4
    c.loop.dpo.epochs, c.loop.dpo.learning_rate = 2, 3e-5
    c.candidates.samples = 4
    c.update_from_flattened_dict(VARIANTS[variant])
    if smoke:
        c.loop.smoke = True
        c.simulated.users.train, c.simulated.users.validation, c.simulated.users.test = 10, 2, 12
        c.pairs.accept_artefacts, c.pairs.min_pairs = True, 1
        c.train.max_steps = 1
    return c
