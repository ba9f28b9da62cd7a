"""The schema: every configuration key, with its meaning, default and allowed values.

    python -m rlhi_jax.config [NAME...]   # print all keys, or only these sections and keys

Experiments in `configs/` start from `base_config()` and change a few keys.
"""

import re

from ml_collections import ConfigDict

from rlhi_jax.config import stage_keys, training_keys
from rlhi_jax.config.keys import Entry, Key, Section, entries

SCHEMA = Section(
    'The whole configuration.',
    objective=Key(
        'dpo',
        'What `python -m rlhi_jax.train` trains. reward: a reward model. All other values train a policy: dpo and '
        'simpo on preference pairs, kto on liked or disliked replies, hindsight on replies and the follow-ups to them, '
        'sft on the chosen replies alone.',
        registry='rlhi_jax.objectives:OBJECTIVES',
    ),
    seed=Key(0, 'Seed for everything random: row order, sampling, splits, new heads.'),
    compilation_cache=Key(
        '.cache/compiled',
        'Folder or bucket that stores compiled programs. All hosts of a TPU pod must share it. Empty: no cache.',
    ),
    beam=Key(
        '',
        "Apache Beam options for the 'ingest' and 'datasets' stages, such as '--runner=DataflowRunner'. Empty: both "
        'stages run on this machine without Beam.',
    ),
    model=training_keys.MODEL,
    data=stage_keys.DATA,
    simulated=stage_keys.SIMULATED,
    teacher=stage_keys.TEACHER,
    ingest=stage_keys.INGEST,
    follow_ups=stage_keys.FOLLOW_UPS,
    personas=stage_keys.PERSONAS,
    rewrites=stage_keys.REWRITES,
    strangers=stage_keys.STRANGERS,
    candidates=stage_keys.CANDIDATES,
    pairs=stage_keys.PAIRS,
    satisfaction=stage_keys.SATISFACTION,
    gate=stage_keys.GATE,
    rows=training_keys.ROWS,
    sampler=training_keys.SAMPLER,
    mesh=training_keys.MESH,
    train=training_keys.TRAIN,
    online=training_keys.ONLINE,
    optimizer=training_keys.OPTIMIZER,
    lora=training_keys.LORA,
    dpo=training_keys.DPO,
    simpo=training_keys.SIMPO,
    kto=training_keys.KTO,
    hindsight=training_keys.HINDSIGHT,
    reward=training_keys.REWARD,
    low_rank=training_keys.LOW_RANK,
    persona_head=training_keys.PERSONA_HEAD,
    loop=training_keys.LOOP,
    policy_sees_persona=Key(True, 'Whether the policy reads the persona in training and evaluation.'),
    sampler_sees_persona=Key(True, 'Whether the policy reads the persona when candidates are sampled.'),
    ref_sees_persona=Key(True, 'Whether the reference model of DPO and KTO reads the persona.'),
    rm_sees_persona=Key(True, 'Whether the reward model reads the persona.'),
    checkpoint=training_keys.CHECKPOINT,
    log=training_keys.LOG,
    eval=training_keys.EVAL,
)

# Keys of earlier versions, mapped to their replacements; '' if the key was removed.
RENAMED = {
    'pairs.margin': 'pairs.min_score_gap',
    'rewrites.margin': 'rewrites.max_feedback_drop',
    'simulated.pairs': 'simulated.tastes',
    'simulated.users.gate': 'simulated.users.validation',
    'mesh.context': '',
}


def base_config() -> ConfigDict:
    """Return the default configuration, locked: it rejects unknown keys and values of the wrong type."""
    return SCHEMA.to_config().lock()


def reference() -> list[Entry]:
    """Return every key and section with its full name; a section's keys come before its subsections."""
    return list(entries(SCHEMA))


def renamed(text: str) -> str:
    """Return a message about the keys in `text` that were renamed or removed, or '' if there are none.

    `text` can be a line of a config file, or just the last part of a key, such as 'margin' for 'pairs.margin'.

    >>> renamed('c.pairs.margin = 0.1')
    'config.pairs.margin is now config.pairs.min_score_gap'
    """
    old = [name for name in RENAMED if re.search(rf'\b{re.escape(name)}\b', text)]
    old = old or [name for name in RENAMED if name.split('.')[-1] == text]
    return '; '.join(
        f'config.{name} is now config.{RENAMED[name]}' if RENAMED[name] else f'config.{name} was removed'
        for name in old
    )
