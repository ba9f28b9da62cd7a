"""The whole loop on real conversations, from a WildChat file of 852 conversations to two exported SmolLM2-135M models.

    --config=configs/wildchat.py          all conversations, labelled by the head that `launch/wildchat.sh` trains
    --config=configs/wildchat.py:smoke    twelve conversations and a few pairs, labelled by the teacher

The file has no user ids, so a persona is made from a user's first two turns, and pairs come from later turns.

Result (`tests/benchmarks/results/wildchat.json`): the loop runs to its end, but SmolLM2-135M as its own teacher cannot
rewrite replies in response to feedback. Of 50 pairs that we read, 2 are right. The check for artefacts, which tries to
tell chosen from rejected replies without their requests, rejects such pairs. Of 26 rewrites by a teacher of 1.5B
parameters, two readers judged 4 and 5 right, and 1 of 26 plain retries (`wildchat_teacher.json` beside it). The loop
needs a stronger teacher (`config.teacher.path`).
Hardware and time: two CPU cores, an hour and a half.
Command (`launch/wildchat.sh` also trains the head):

    python -m rlhi_jax.loop --config=configs/wildchat.py --workdir=runs/wildchat --config.data.raw=conversations.jsonl
"""

from rlhi_jax.config import base_config, parse_variant


def get_config(variant: str = ''):
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # not every CPU has bfloat16 instructions
    c.loop.reward.learning_rate = 2e-5
    c.loop.dpo.learning_rate = 5e-6
    c.ingest.languages = 'English'  # the only language that SmolLM2 speaks
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
    if parse_variant(variant).smoke:
        c.loop.smoke = True
        c.follow_ups.labeller, c.follow_ups.min_confidence = 'teacher', 0.5
        c.ingest.max_conversations = 12
        c.rewrites.max_turns = 8
        c.candidates.samples, c.candidates.max_prompts = 2, 4
        c.pairs.accept_artefacts = True
        c.pairs.min_pairs = 1
    return c
