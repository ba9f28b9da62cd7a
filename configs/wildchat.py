"""Real conversations: WildChat's file of 852, through the loop to two exported folders.

    python -m rlhi_jax.loop --config=configs/wildchat.py --workdir=runs/wildchat --config.data.raw=conversations.jsonl
    --config=configs/wildchat.py:smoke   twelve conversations and a few pairs, all labels by the teacher

The file has no user ids, so a persona is what a user said in their first two turns, and pairs come from later turns.
Follow-ups are labelled by a head, which `launch/wildchat.sh` trains first. It wants a strong teacher
(`config.teacher.path`): with SmolLM2-135M as its own teacher it proves the plumbing only.
"""

from rlhi_jax.config import base_config


def get_config(variant: str = ''):
    c = base_config()
    if variant not in ('', 'smoke'):
        raise ValueError(f'no variant {variant!r}: only smoke')
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'
    c.data.raw = '../shared/data/wildchat/conversations.jsonl'
    c.loop.reward.learning_rate = 2e-5
    c.loop.dpo.learning_rate = 5e-6
    c.ingest.languages = 'English'  # all that SmolLM2 speaks
    c.ingest.heldout = 0.2
    c.follow_ups.labeller = 'head'
    c.follow_ups.head = 'runs/wildchat_head'
    c.follow_ups.min_confidence = 0.8  # see `tests/benchmarks/follow_ups.py`
    c.personas.scope = 'first_k_turns'
    c.personas.first_k = 2
    c.sampler.slots = 32
    c.sampler.prompt_tokens = 512
    c.sampler.temperature = 0.7
    c.teacher.row_tokens = 1536
    c.candidates.samples = 4
    c.candidates.max_prompts = 32
    c.rows.tokens = 1024
    c.rows.scored = 512
    c.rows.pairs = 4
    c.train.batch_rows = 4
    c.train.accumulate = 4
    c.optimizer.clip = 1.0
    c.dpo.beta = 0.1
    c.eval.batch_rows = 1
    if variant == 'smoke':
        c.loop.smoke = True
        c.follow_ups.labeller, c.follow_ups.min_confidence = 'teacher', 0.5
        c.ingest.max_conversations = 12
        c.rewrites.max_turns = 8
        c.candidates.samples, c.candidates.max_prompts = 2, 4
        c.pairs.accept_artefacts = True
        c.pairs.min_pairs = 1
    return c
