"""Keys for models, training, sampling and evaluation.

RLHI's own values are not published. Defaults marked "Default from arXiv 2506.21495" come from the DPO runs on WildChat
that the RLHI team published in that paper. Unless a meaning names another source, all other defaults are ours.
"""

from rlhi_jax.config.keys import Key, Section

# Repeated here so that configs can be read without JAX; `tests/test_config.py` compares this with the decoder's copy.
REMAT_POLICIES = ('save_all', 'save_dots', 'save_attention', 'save_nothing')

MODEL = Section(
    'The model to train or sample from.',
    path=Key(
        '',
        'Model folder written by `python -m rlhi_jax.convert import`, or the workdir of an earlier training run. This '
        'model is the initial model, the DPO reference and, if teacher.path is empty, the teacher.',
    ),
    new_head=Key(
        False,
        'Reward training only: add a new reward head to a language model. False: the model already has a reward head.',
    ),
    dtype=Key(
        'bfloat16',
        'Number format that the model computes in. Trained parameters are stored in float32.',
        choices=('float32', 'bfloat16'),
    ),
    remat=Key(
        'save_dots',
        'Which intermediate results of a layer stay in memory for the gradient; the others are recomputed. The first '
        'choice uses the most memory and the least time, and the last choice the least memory and the most time.',
        choices=REMAT_POLICIES,
    ),
    logprob_chunk=Key(
        128,
        'Number of scored tokens per row whose logits over the vocabulary are in memory at the same time. It must '
        'divide rows.scored or be larger than rows.scored.',
        at_least=1,
    ),
)

ROWS = Section(
    'The capacities of a row. A row is the fixed-size unit of training data and can contain several interaction trees.',
    tokens=Key(
        1024,
        'Tokens per row. TPUs compute attention fastest for multiples of 512. Default from arXiv 2506.21495.',
        at_least=1,
    ),
    scored=Key(
        1024,
        'Maximum number of scored tokens in a row. The tokens of chosen and rejected replies are scored.',
        at_least=1,
    ),
    pairs=Key(8, 'Maximum number of preference pairs in a row.', at_least=1),
)

SAMPLER = Section(
    'How the policy samples replies, and how the teacher samples text.',
    slots=Key(32, 'Sequences decoded at the same time, across all devices of this host.', at_least=1),
    prompt_tokens=Key(512, 'Maximum prompt length, in tokens. Longer prompts lose their oldest exchanges.', at_least=1),
    new_tokens=Key(
        512, 'Maximum reply length, in tokens. Longer replies are cut off and marked as unfinished.', at_least=1
    ),
    temperature=Key(1.0, 'Sampling temperature; 0: greedy decoding. Default from arXiv 2506.21495.', at_least=0),
    top_p=Key(
        1.0,
        'Nucleus sampling: sample from the smallest set of tokens whose probabilities add up to this. Default from '
        'arXiv 2506.21495.',
        above=0,
        at_most=1,
    ),
    top_k=Key(0, 'Sample from this many of the likeliest tokens; 0: from all.', at_least=0),
    min_p=Key(
        0.0,
        "Sample from tokens whose probability is at least this fraction of the likeliest token's; 0: from all.",
        at_least=0,
        at_most=1,
    ),
    repetition_penalty=Key(
        1.0,
        'Penalty on tokens that already occur in the prompt or the reply: it divides their logits if positive, and '
        'multiplies them if negative. 1: off.',
        above=0,
    ),
    stop=Key((), 'Strings that end a reply. The reply is the text before the first of them and counts as finished.'),
    logprobs=Key(
        False,
        "Whether `python -m rlhi_jax.generate` writes each token's log-probability under the model at temperature 1.",
    ),
)

LORA = Section(
    'Low-rank adapters: train a small addition to some matrices of a frozen model, and nothing else.',
    rank=Key(
        0,
        "Rank of each adapter; 0: no adapters, all parameters are trained. A reward model's head is always trained.",
        at_least=0,
    ),
    alpha=Key(16.0, "Numerator of the adapters' scale, which is alpha / rank.", above=0),
    targets=Key(
        'layers/(q|k|v|o|gate|up|down)',
        'Regular expression that matches the whole name of each adapted matrix, such as layers/q.',
    ),
    base_dtype=Key(
        'float32',
        'Number format of the frozen parameters in memory during training; the model folder keeps float32.',
        choices=('float32', 'bfloat16'),
    ),
    reference=Key(
        'cached',
        'How DPO gets the log-probabilities of the reference, which is the frozen model. cached: once per row, before '
        'training; faster with several epochs, or if data.reference already has them. in_step: in each step, with the '
        'adapters off; faster if each row is seen once, because training then starts immediately.',
        choices=('cached', 'in_step'),
    ),
)

MESH = Section(
    'Number of devices on each axis of the mesh. One axis may be -1; it takes all remaining devices.',
    data=Key(1, 'Devices that share the rows of a batch and each have a copy of the parameters.', at_least=-1),
    fsdp=Key(-1, 'Devices that share the rows of a batch and also split the parameters between them.', at_least=-1),
    tensor=Key(1, 'Devices that split the heads and the MLP width of each layer between them.', at_least=-1),
)

TRAIN = Section(
    'The length and batch size of a training run.',
    epochs=Key(1, 'Passes over the rows (online: over the requests). The loop uses loop.OBJECTIVE.epochs.', at_least=1),
    max_steps=Key(0, 'Optimizer steps after which training ends; 0: train until the epochs end.', at_least=0),
    batch_rows=Key(32, 'Rows per optimizer step, across all devices. Default from arXiv 2506.21495.', at_least=1),
    accumulate=Key(
        1,
        'Number of parts that a batch is split into; they are computed one after another, to save memory. It must '
        'divide train.batch_rows.',
        at_least=1,
    ),
)

ONLINE = Section(
    'Online training (`python -m rlhi_jax.online`), in rounds: the policy answers requests, a judge scores the '
    'answers, and the best and the worst answer to each request train the policy.',
    prompts=Key(
        0,
        'Requests per round, all answered with the same weights. About as many as a batch has pairs: online. '
        'Several batches: semi-online (arXiv 2506.21495). The program needs at least 1. In the '
        "loop, 0 stands for offline training; other values need loop.method='rewards'.",
        at_least=0,
    ),
    sync_reference=Key(
        0,
        'Rounds after which the reference model gets the weights of the policy. 0: it stays the initial model.',
        at_least=0,
    ),
)
OPTIMIZER = Section(
    'AdamW and its learning rate schedule.',
    learning_rate=Key(
        1e-6,
        'Peak learning rate. The loop uses loop.OBJECTIVE.learning_rate instead. Default from arXiv 2506.21495.',
        at_least=0,
    ),
    schedule=Key(
        'constant',
        'Learning rate schedule after the warm-up; linear and cosine decay to 0 at the last step.',
        choices=('constant', 'linear', 'cosine'),
    ),
    warmup_steps=Key(0, 'Steps over which the learning rate rises to its peak.', at_least=0),
    b1=Key(0.9, 'Decay rate of the running mean of gradients.', at_least=0, below=1),
    b2=Key(0.999, 'Decay rate of the running mean of squared gradients.', at_least=0, below=1),
    eps=Key(1e-8, 'Number added to the denominator of the update. Default from arXiv 2506.21495.', at_least=0),
    weight_decay=Key(
        0.0,
        'Decoupled weight decay: each step shrinks each parameter by this fraction times the learning rate.',
        at_least=0,
    ),
    clip=Key(0.1, 'Maximum global norm of the gradient; 0: no clipping. Default from arXiv 2506.21495.', at_least=0),
)

DPO = Section(
    "Settings of the 'dpo' objective.",
    variant=Key(
        'sigmoid',
        "Loss on the difference between the two replies' log-ratios: sigmoid (DPO), length_normalized (DPO on "
        'per-token averages, as in Tülu 3), robust (DPO for noisy labels), hinge (SLiC) or ipo (IPO, on per-token '
        'averages).',
        registry='rlhi_jax.objectives.dpo:VARIANTS',
    ),
    beta=Key(
        0.01,
        'Weight of the log-ratios; a larger value keeps the policy closer to the reference. Default from arXiv '
        '2506.21495.',
        above=0,
    ),
    label_smoothing=Key(
        0.0,
        'Assumed probability that chosen and rejected are swapped in a pair. sigmoid and length_normalized then become '
        'conservative DPO; hinge and ipo ignore this key.',
        at_least=0,
        below=0.5,
    ),
    nll_weight=Key(
        0.0,
        "Weight of the chosen reply's negative log-likelihood per token, which is added to the loss; 0: off.",
        at_least=0,
    ),
)

SIMPO = Section(
    "Settings of the 'simpo' objective. The defaults are in the ranges that arXiv 2405.14734 recommends.",
    beta=Key(2.0, 'Weight of the log-probability per token.', above=0),
    gamma=Key(1.0, "Margin by which the chosen reply's reward should exceed the rejected reply's.", at_least=0),
)

KTO = Section(
    "Settings of the 'kto' objective. The defaults are from arXiv 2402.01306.",
    beta=Key(0.1, 'Weight of the log-ratios; a larger value keeps the policy closer to the reference.', above=0),
    chosen_weight=Key(1.0, 'Weight of the loss on chosen replies.', at_least=0),
    rejected_weight=Key(1.0, 'Weight of the loss on rejected replies.', at_least=0),
)

HINDSIGHT = Section(
    "Settings of the 'hindsight' objective.",
    skip_tokens=Key(
        2,
        'Number of tokens to leave out of training at the start of each reply. The follow-up mostly changes how a '
        'reply opens. The default is from the code published with arXiv 2603.12273.',
        at_least=0,
    ),
)

REWARD = Section(
    "Settings of the 'reward' objective.",
    center=Key(
        0.0, "Weight of the squared sum of a pair's two rewards, which keeps rewards near 0; 0: off.", at_least=0
    ),
    ties=Key(
        0.0,
        'How likely a tie is, if the two rewards are equal, compared with either reply being preferred; 1: as likely. '
        '0: the data contains no ties.',
        at_least=0,
    ),
    label_smoothing=Key(
        0.0, 'Assumed probability that chosen and rejected are swapped in a pair.', at_least=0, below=0.5
    ),
)

LOW_RANK = Section(
    'Settings of `python -m rlhi_jax.user_rewards`: rewards that users mix with weights of their own.',
    ties=Key(False, 'Whether ties are kept, and how readily each user calls two replies equally good is learned.'),
    rank=Key(8, 'Number of rewards that are mixed.', at_least=1),
    penalty=Key(1.0, 'Weight of the penalty on large rewards and weights.', above=0),
    steps=Key(500, 'Optimizer steps, each on all pairs.', at_least=1),
)

PERSONA_HEAD = Section(
    'Settings of `python -m rlhi_jax.user_rewards --kind=persona_head`: a network over states of a frozen model.',
    width=Key(32, 'Width of the network.', at_least=1),
    penalty=Key(0.01, 'Weight of the penalty on large parameters.', above=0),
    steps=Key(500, 'Optimizer steps, each on all pairs.', at_least=1),
)

LOOP = Section(
    '`python -m rlhi_jax.loop`: one round of RLHI, from conversations to a reward model and a policy.',
    method=Key(
        'both',
        "Where the policy's pairs come from. rewrites: replies rewritten in response to feedback. rewards: the best "
        'and worst of N replies, scored by the reward model. both: rewrites and rewards together. oracle: the best and '
        "worst of N replies, scored by the simulated users' checkers.",
        choices=('rewrites', 'rewards', 'both', 'oracle'),
    ),
    simulated=Key(
        False,
        'The users are simulated. Unless data.raw is set to a folder with their conversations, they first talk to the '
        'policy. They judge the policy before and after training.',
    ),
    oracle_personas=Key(
        False,
        'Simulated users state what they like, and this becomes their persona, so that neither conversations nor a '
        'teacher are needed. Requires loop.method=oracle.',
    ),
    gate=Key(
        True,
        "Decide at the end whether the new policy replaces the one that the round started from (stage 'gate'). "
        'WORKDIR/model then links to the policy in force, which the next round can start from.',
    ),
    smoke=Key(False, 'State in the report that this run is a smoke test and that its figures are not evidence.'),
    reward=Section(
        'Training of the reward model.',
        epochs=Key(1, 'Passes over the rows.', at_least=1),
        learning_rate=Key(1e-5, 'Peak learning rate.', at_least=0),
    ),
    sft=Section(
        'Warm start: the policy is first fine-tuned on the chosen replies of the pairs that come from rewrites. The '
        'result samples the candidates, and is the model from which DPO starts and its reference.',
        epochs=Key(0, 'Passes over the rows; 0: no warm start.', at_least=0),
        learning_rate=Key(1e-5, 'Peak learning rate.', at_least=0),
    ),
    dpo=Section(
        'Training of the policy.',
        epochs=Key(1, 'Passes over the rows.', at_least=1),
        learning_rate=Key(1e-6, 'Peak learning rate.', at_least=0),
    ),
)

CHECKPOINT = Section(
    'Checkpoints that a training run resumes from.',
    every_steps=Key(100, 'Optimizer steps between checkpoints; the last step always has a checkpoint.', at_least=1),
    keep=Key(2, 'Number of newest checkpoints to keep; older checkpoints are deleted.', at_least=1),
)

LOG = Section(
    'Metrics of a training run.',
    every_steps=Key(1, 'Optimizer steps between lines of metrics.', at_least=1),
    profile_steps=Key(
        0,
        'Number of steps, after the first, that the JAX profiler traces into WORKDIR/profile; 0: no trace.',
        at_least=0,
    ),
)

EVAL = Section(
    "`python -m rlhi_jax.evaluate`: scores of held-out pairs with the user's own persona, with another user's persona "
    'and without a persona.',
    shards=Key(
        '',
        "Folder of held-out interaction trees: output of the 'shards' stage for the validation split. The loop makes "
        'such a folder for each training run.',
    ),
    batch_rows=Key(
        8, 'Rows scored at the same time, across all devices, in evaluation and when candidates are scored.', at_least=1
    ),
    max_trees=Key(0, 'Maximum number of interaction trees to evaluate, selected by hash; 0: all.', at_least=0),
    shuffle_seed=Key(0, "Seed that assigns another user's persona to each user in the condition 'other'."),
)
