"""RLHI in the setting of its paper (arXiv 2509.25137): Llama-3.1-8B-Instruct and the users of WildChat-1M.

    --config=configs/rlhi_llama31_8b.py:rewrites         replies rewritten in response to users' follow-ups
    --config=configs/rlhi_llama31_8b.py:rewards          the best and worst of 8 replies, by Athene-RM-8B
    --config=configs/rlhi_llama31_8b.py:online           the same, in rounds of 32 requests
    --config=configs/rlhi_llama31_8b.py:rewrites,smoke   a few pairs with SmolLM2-135M; rewards,smoke likewise, with a
                                                         reward model that the loop trains itself; online,smoke with
                                                         the policy as the judge

The paper names the models, the data, and what the stages do. It does not state all settings. Comments below say where
each value comes from: `paper`; `sibling`, the same team's DPO on WildChat (arXiv 2506.21495); or `ours`.

Result: none yet.
Hardware and time: a TPU v5p-64 slice (32 chips). Not run, so the time is unknown. The TPU compiler accepts
the train step, with 18.0 GiB per chip, and scoring and sampling on the four chips of a host, with 12.3 and 19.5 GiB
(`tests/benchmarks/pods.py`). Each runs by itself in the loop; an online run keeps all three models on the chips.
Command:

    python -m rlhi_jax.convert import --source=hf://meta-llama/Llama-3.1-8B-Instruct --to=runs/llama31_8b
    python -m rlhi_jax.convert import --source=hf://Nexusflow/Athene-RM-8B --to=runs/athene_rm_8b
    python -m rlhi_jax.loop --config=configs/rlhi_llama31_8b.py:rewrites --workdir=runs/rlhi --config.data.raw=WILDCHAT
"""

from rlhi_jax.config import base_config, on_two_cores, parse_variant


def get_config(variant: str = ''):
    method, smoke = parse_variant(variant, ('rewrites', 'rewards', 'online'))
    c = base_config()
    c.loop.method = 'rewrites' if method == 'rewrites' else 'rewards'
    c.model.path = 'runs/llama31_8b'  # paper
    c.teacher.path = 'http://localhost:8000/v1'  # the policy itself (paper), served
    c.teacher.model = 'meta-llama/Llama-3.1-8B-Instruct'
    c.ingest.languages = 'English'  # ours
    c.personas.scope = 'earlier_conversations'  # paper
    c.rewrites.regenerate = True  # paper: the base model answers again before its reply is rewritten
    c.rewrites.samples = 4  # ours
    c.candidates.samples = 8  # ours: N is not stated
    c.sampler.temperature, c.sampler.top_p, c.sampler.new_tokens = 1.0, 1.0, 1024  # sibling
    c.sampler.prompt_tokens, c.teacher.row_tokens = 3072, 8192  # ours
    c.rows.tokens, c.rows.scored, c.rows.pairs = 4096, 2048, 2  # ours: room for two replies of 1,024 tokens
    c.mesh.data, c.mesh.fsdp = 1, -1  # ours
    c.train.batch_rows = 32  # sibling: 32 pairs a step; more if short pairs share a row
    c.loop.dpo.learning_rate, c.dpo.beta, c.optimizer.clip = 1e-6, 0.01, 0.1  # sibling
    if method != 'rewrites':
        c.candidates.reward_model = 'runs/athene_rm_8b'  # paper: it reads the persona as text
    if method == 'online':
        c.online.prompts = 32  # ours: about one batch of pairs
        c.optimizer.schedule = 'constant'  # sibling
    if smoke:
        on_two_cores(c)
        c.model.path = 'runs/smollm2'
        c.teacher.path = c.teacher.model = c.candidates.reward_model = ''
        c.ingest.max_conversations, c.rewrites.max_turns = 12, 8
        c.train.max_steps = 1
        if method == 'online':
            c.candidates.scorer, c.online.prompts = 'policy', 4
    return c
