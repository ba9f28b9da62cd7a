"""Keys of models, training, sampling and evaluation.

Values marked "sibling default" follow the same team's published DPO runs on WildChat (arXiv 2506.21495); RLHI's own are
not published. The others are ours.
"""

from rlhi_jax.config.keys import Key, Section

# Literal here, so that a config is read without JAX; `tests/test_config.py` compares it with the decoder's.
REMAT_POLICIES = ('save_all', 'save_dots', 'save_attention', 'save_nothing')

MODEL = Section(
    'The model that is trained or sampled from.',
    path=Key(
        '',
        'Model folder: written by `python -m rlhi_jax.convert import`, or the workdir of an earlier training run. It '
        'is the initial model, the reference of DPO and, unless teacher.path names another, the teacher.',
    ),
    new_head=Key(
        False,
        'Reward training only: put a new reward head on a language model. False: the model has a reward head already.',
    ),
    dtype=Key(
        'bfloat16',
        'Number format in which the model computes. Trained parameters are kept in float32.',
        choices=('float32', 'bfloat16'),
    ),
    remat=Key(
        'save_dots',
        'Which intermediate results of a layer stay in memory for the gradient; the others are computed twice. The '
        'first choice uses the most memory and the least time, the last the reverse.',
        choices=REMAT_POLICIES,
    ),
    logprob_chunk=Key(
        128,
        'Scored tokens of a row whose logits over the vocabulary are in memory at once. It must divide rows.scored, '
        'unless it is larger.',
        at_least=1,
    ),
)

ROWS = Section(
    'The capacities of a row, the fixed-size unit of training data that holds several interaction trees.',
    tokens=Key(
        1024,
        'Tokens of a row. TPUs compute attention fastest for multiples of 512. Sibling default: length 1,024.',
        at_least=1,
    ),
    scored=Key(1024, 'Maximum number of scored tokens in a row: those of chosen and rejected replies.', at_least=1),
    pairs=Key(8, 'Maximum number of preference pairs in a row.', at_least=1),
)

SAMPLER = Section(
    'How the policy samples replies, and the teacher text.',
    slots=Key(32, 'Sequences decoded at the same time, over all devices of this host.', at_least=1),
    prompt_tokens=Key(512, 'Longest prompt, in tokens. Longer prompts lose their oldest exchanges.', at_least=1),
    new_tokens=Key(512, 'Longest reply, in tokens. A longer reply is cut off and marked as not finished.', at_least=1),
    temperature=Key(1.0, 'Sampling temperature; 0: greedy decoding. Sibling default.', at_least=0),
    top_p=Key(
        1.0,
        'Nucleus sampling: draw from the fewest tokens whose probabilities add up to this much. Sibling default.',
        above=0,
        at_most=1,
    ),
)

MESH = Section(
    'How many devices each axis of the mesh has. One axis may be -1: it takes the devices that are left.',
    data=Key(1, 'Devices that split a batch by rows, each with a copy of the parameters.', at_least=-1),
    fsdp=Key(-1, 'Devices that split a batch by rows and also split the parameters.', at_least=-1),
    tensor=Key(1, 'Devices that split each layer by heads and MLP width.', at_least=-1),
)

TRAIN = Section(
    'The length and the batches of a training run.',
    epochs=Key(1, 'Passes over the rows. The loop uses loop.reward.epochs and loop.dpo.epochs instead.', at_least=1),
    max_steps=Key(0, 'Optimizer steps after which training ends; 0: when the epochs end.', at_least=0),
    batch_rows=Key(32, 'Rows of one optimizer step, over all devices. Sibling default: batch 32.', at_least=1),
    accumulate=Key(
        1,
        'Parts that a batch is split into and computed one after another, to save memory. It must divide '
        'train.batch_rows.',
        at_least=1,
    ),
)

OPTIMIZER = Section(
    'AdamW and its schedule.',
    learning_rate=Key(
        1e-6,
        'Peak learning rate. The loop uses loop.reward.learning_rate and loop.dpo.learning_rate instead. Sibling '
        'default.',
        at_least=0,
    ),
    schedule=Key(
        'constant',
        'Learning rate after the warm-up; linear and cosine decay to 0 at the last step.',
        choices=('constant', 'linear', 'cosine'),
    ),
    warmup_steps=Key(0, 'Steps over which the learning rate rises to its peak.', at_least=0),
    b1=Key(0.9, 'Decay of the running mean of gradients.', at_least=0, below=1),
    b2=Key(0.999, 'Decay of the running mean of squared gradients.', at_least=0, below=1),
    eps=Key(1e-8, 'Number added to the denominator of the update. Sibling default.', at_least=0),
    weight_decay=Key(
        0.0, 'Decoupled weight decay: each step shrinks a parameter by this times the learning rate.', at_least=0
    ),
    clip=Key(0.1, 'Largest global norm of the gradient; 0: no clipping. Sibling default.', at_least=0),
)

DPO = Section(
    'The objective dpo.',
    variant=Key(
        'sigmoid',
        'The loss on the difference of log-ratios: sigmoid (DPO), hinge (SLiC) or ipo (IPO, on averages per token).',
        registry='rlhi_jax.objectives.dpo:VARIANTS',
    ),
    beta=Key(
        0.01,
        'Weight of the log-ratios: the larger, the closer the policy stays to the reference. Sibling default.',
        above=0,
    ),
    label_smoothing=Key(
        0.0,
        'Assumed probability that a pair is the wrong way round (conservative DPO); only sigmoid uses it.',
        at_least=0,
        below=0.5,
    ),
)

REWARD = Section(
    'The objective reward.',
    center=Key(
        0.0, 'Weight of the squared sum of the two rewards of a pair, which keeps rewards around 0; 0: off.', at_least=0
    ),
)

LOOP = Section(
    '`python -m rlhi_jax.loop`: one round of RLHI, from conversations to a reward model and a policy.',
    method=Key(
        'both',
        "Where the policy's pairs come from. rewrites: rewrites under users' feedback. rewards: best and worst of N by "
        'the reward model. both: those two. oracle: best and worst of N by the checkers of simulated users.',
        choices=('rewrites', 'rewards', 'both', 'oracle'),
    ),
    simulated=Key(False, 'Let simulated users converse with the policy first, instead of reading data.raw.'),
    oracle_personas=Key(
        False,
        'Simulated users state what they like as their persona, so that neither conversations nor a teacher are '
        'needed. Only with method oracle.',
    ),
    smoke=Key(False, 'State in the report that this run is a smoke test and its figures are not evidence.'),
    reward=Section(
        'Training of the reward model.',
        epochs=Key(1, 'Passes over the rows.', at_least=1),
        learning_rate=Key(1e-5, 'Peak learning rate.', at_least=0),
    ),
    dpo=Section(
        'Training of the policy.',
        epochs=Key(1, 'Passes over the rows.', at_least=1),
        learning_rate=Key(1e-6, 'Peak learning rate.', at_least=0),
    ),
)

CHECKPOINT = Section(
    'Checkpoints of a training run, from which it resumes.',
    every_steps=Key(100, 'Optimizer steps from one checkpoint to the next; the last step always has one.', at_least=1),
    keep=Key(2, 'Newest checkpoints that are kept; older ones are deleted.', at_least=1),
)

LOG = Section(
    'Metrics of a training run.',
    every_steps=Key(1, 'Optimizer steps from one line of metrics to the next.', at_least=1),
    profile_steps=Key(
        0, 'Optimizer steps, after the first, that the JAX profiler traces into WORKDIR/profile; 0: none.', at_least=0
    ),
)

EVAL = Section(
    '`python -m rlhi_jax.evaluate`: held-out pairs under the persona of their own user, of another, and none.',
    shards=Key(
        '', 'Folder of held-out interaction shards, those of the validation split. The loop makes one for each run.'
    ),
    batch_rows=Key(
        8, 'Rows scored at once, over all devices, in evaluation and when candidates are scored.', at_least=1
    ),
    max_trees=Key(0, 'Maximum number of interaction trees to evaluate, chosen by a hash; 0: all.', at_least=0),
    shuffle_seed=Key(0, 'Seed that assigns each user another user, whose persona is the condition other.'),
)
