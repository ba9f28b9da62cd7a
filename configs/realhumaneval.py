"""Programmers with a history: RealHumanEval's 823 requests of 79 users, to personas.

Run by `launch/realhumaneval.sh`, with the head that `launch/wildchat.sh` trains; results in the README.
"""

from rlhi_jax.config import base_config


def get_config():
    c = base_config()
    c.model.path = 'runs/smollm2'
    c.model.dtype = 'float32'
    c.data.raw = '../shared/data/realhumaneval/chat.jsonl'
    c.data.conversations = 'runs/realhumaneval/conversations'
    c.data.follow_ups = 'runs/realhumaneval/follow_ups'
    c.data.personas = 'runs/realhumaneval/personas'
    c.data.card = 'runs/realhumaneval/card'
    c.follow_ups.labeller = 'head'
    c.follow_ups.head = 'runs/wildchat_head'
    c.follow_ups.min_confidence = 0.8  # see `tests/benchmarks/follow_ups.py`
    c.sampler.temperature = 0.7
    return c
