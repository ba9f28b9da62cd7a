"""Personas of programmers, made from their earlier conversations: RealHumanEval's 823 requests from 79 users.

    --config=configs/realhumaneval.py          all requests, labelled by the head that `launch/wildchat.sh` trains
    --config=configs/realhumaneval.py:smoke    forty conversations, labelled by the teacher, in minutes

Result (`tests/benchmarks/results/realhumaneval.json`): there are almost no personas. Of the 67 users with at least five
requests, only one has a persona, and that persona is about the task.
Hardware and time: two CPU cores, minutes.
Command (each stage is a program; `launch/realhumaneval.sh` runs all of them):

    for stage in ingest follow_ups personas card; do
      python -m data_pipelines.$stage --config=configs/realhumaneval.py --config.data.raw=chat.jsonl
    done
"""

from rlhi_jax.config import base_config, parse_variant


def get_config(variant: str = ''):
    smoke = parse_variant(variant).smoke
    folder = 'runs/realhumaneval_smoke' if smoke else 'runs/realhumaneval'
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'  # not every CPU has bfloat16 instructions
    c.data.conversations = f'{folder}/conversations'
    c.data.follow_ups = f'{folder}/follow_ups'
    c.data.personas = f'{folder}/personas'
    c.data.card = f'{folder}/card'
    c.follow_ups.labeller = 'head'
    c.follow_ups.head = 'runs/wildchat_head'
    c.follow_ups.min_confidence = 0.8  # see `tests/benchmarks/follow_ups.py`
    c.sampler.temperature = 0.7
    if smoke:
        c.follow_ups.labeller, c.follow_ups.min_confidence = 'teacher', 0.5
        c.ingest.max_conversations = 40
        c.personas.samples = 1
    return c
