"""Keys of the data pipeline: its folders, the teacher, and one section for each stage.

All values are ours; RLHI's own are not published.
"""

from rlhi_jax.config.keys import Key, Section

DATA = Section(
    'Folders and files of data. Each stage reads those that it needs and writes the folder of its own name. The loop '
    'sets most of them to folders in its workdir.',
    raw=Key(
        '',
        'Raw conversations: files, folders or data sets of the Hugging Face hub (hf://OWNER/NAME[@REVISION][/PATH]), '
        'joined by commas.',
    ),
    conversations=Key('', 'Folder of the stage ingest: cleaned conversations in splits.'),
    follow_ups=Key('', 'Folder of the stage follow_ups: a label for each user turn after a reply.'),
    personas=Key('', 'Folder of the stage personas: claims about users, and the personas made of them.'),
    rewrites=Key('', "Folder of the stage rewrites: replies written again under users' feedback."),
    prompts=Key(
        '',
        'JSON lines of prompts to sample candidates for: id, user_id, persona, split, messages. Empty: every user turn '
        'of the training conversations that asks for something, with its persona.',
    ),
    candidates=Key('', 'Folder of the stage candidates: N sampled replies to each prompt, with their rewards.'),
    scores=Key('', 'Folder of scores of candidates to use instead of the rewards, such as those of checkers.'),
    satisfaction=Key('', 'Folder of the evaluation satisfaction: replies to simulated users, checked.'),
    pairs=Key(
        '',
        'Preference pairs as JSON lines, joined by commas: files, or folders of the stage pairs, which writes one file '
        'for each split.',
    ),
    split=Key('train', 'Split of such folders that the stage shards reads: train, validation or test.'),
    shards=Key('', 'Folder of the stage shards: interaction trees as ArrayRecord files.'),
    rows=Key('', 'Folder of the stage rows: which trees share a row.'),
    datasets=Key('', 'Folder of TFDS data sets of conversations and interactions, for other programs.'),
    card=Key('', 'Folder of the data card: counts, distributions and examples of what the stages above wrote.'),
    reference=Key(
        '',
        'Folder that caches the log-probabilities of the reference model, so that runs share them; empty: in the '
        'workdir.',
    ),
    trees_per_shard=Key(1000, 'Interaction trees in one file of shards.', at_least=1),
    threads=Key(2, 'Threads that read rows ahead of training.', at_least=1),
)

SIMULATED = Section(
    'Simulated users, who have tastes that programs can check; a source of raw conversations.',
    users=Section(
        'Number of users in each split.',
        train=Key(48, 'Users to train on.', at_least=0),
        validation=Key(8, 'Users held out for choosing settings.', at_least=0),
        test=Key(24, 'Users held out for the evaluation of satisfaction.', at_least=0),
    ),
    tastes=Key(
        'length,layout,address',
        'Tastes that users may have, joined by commas; at least three. Each has two opposite sides, such as short and '
        'long.',
    ),
    held_out=Key('', 'Further tastes, joined by commas, that only users of the test split have.'),
    conversations=Key(6, 'Conversations of each user, from which their persona is inferred.', at_least=0),
    prompts=Key(6, 'Further requests of each user, outside of the conversations.', at_least=0),
    special_every=Key(
        0,
        'In every group of this many users, one changes their mind half-way and one wants the opposite for one kind of '
        'request; 0: nobody does.',
        at_least=0,
    ),
)

TEACHER = Section(
    'The model that labels follow-ups, writes personas and rewrites replies. Only path and row_tokens apply to a local '
    'model; the other keys are for endpoints.',
    path=Key(
        '',
        'Model folder, or base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1. Empty: the '
        'model at model.path.',
    ),
    row_tokens=Key(1024, 'Longest text, in tokens, that a local model judges.', at_least=1),
    model=Key('', 'Name of the model at the endpoint.'),
    key_variable=Key(
        'OPENAI_API_KEY', 'Environment variable that holds the key of the endpoint; local servers need none.'
    ),
    temperature=Key(
        0.0, 'Temperature of the first attempt at a judgement in JSON; later ones use sampler.temperature.', at_least=0
    ),
    attempts=Key(3, 'Attempts at a judgement, each with another seed, before it counts as missing.', at_least=1),
    concurrency=Key(16, 'Requests under way at the same time.', at_least=1),
    timeout=Key(
        120.0,
        'Seconds without a byte, or five times as many for a whole answer, before a request is sent again.',
        at_least=1,
    ),
    retries=Key(
        30,
        'Times that a failed request is sent again, 0.5 to 8 seconds later; 30 outlast a restart of 3 minutes.',
        at_least=0,
    ),
    budget=Key(
        0,
        'Tokens, of prompts and answers, after which a stage stops; raise it and run the stage again to resume. 0: no '
        'limit.',
        at_least=0,
    ),
    price_in=Key(0.0, 'Price of a million tokens of prompts, in any currency; for the cost in manifests.', at_least=0),
    price_out=Key(0.0, 'Price of a million tokens of answers, in the same currency.', at_least=0),
    cache=Key('', 'SQLite file of answers by request, which stages and runs may share; empty: none.'),
)

INGEST_FIELDS = Section(
    'Where a raw record holds each field: a path of keys joined by dots. Of several paths joined by |, the first that '
    'the record has is used, unless stated otherwise.',
    id=Key('conversation_hash|conversation_id|id', 'Id of the conversation; without one, a hash of its content.'),
    user=Key('hashed_ip|user_id|user', 'Id of the user.'),
    header=Key('header', "Header of the user's browser: with ingest.salt it is part of the user's key."),
    ended=Key('timestamp|metadata.timestamp|timestamp_s|created', 'Time at which the conversation ended.'),
    language=Key('language|metadata.language', 'Language of the conversation.'),
    toxic=Key(
        'toxic|openai_moderation.flagged|conversation.toxic', 'Flags of toxic content; one that is set suffices.'
    ),
    redacted=Key('redacted|conversation.redacted', 'Flags of redacted content; one that is set suffices.'),
    messages=Key('conversation|messages|conversations', 'List of messages.'),
    reply=Key(
        'response|choices.message.content|response.choices.message.content',
        'Last reply, where it is not one of the messages: the first of these that is text.',
    ),
    role=Key('role|from', 'Role, in a message.'),
    content=Key('content|value', 'Text, in a message.'),
    said_at=Key('timestamp', 'Time, in a message.'),
    user_role=Key('user|human', 'Names of the role of the user, joined by |.'),
    assistant_role=Key('assistant|gpt|bot|model', 'Names of the role of the model, joined by |.'),
    system_role=Key('system|developer', 'Names of the role of the system message, joined by |.'),
)

INGEST = Section(
    'The stage ingest: which raw conversations are kept, and how they are split.',
    languages=Key(
        '',
        'Languages to keep, joined by commas, as the data name them. Conversations without a language are kept too. '
        'Empty: all languages.',
    ),
    keep_toxic=Key(False, 'Keep conversations that the data flag as toxic.'),
    keep_redacted=Key(True, 'Keep conversations that the data flag as redacted.'),
    keep_jailbreaks=Key(False, 'Keep conversations with a request that tries to argue the model out of its rules.'),
    keep_refusals=Key(False, 'Keep conversations in which every reply is a refusal.'),
    max_characters=Key(200_000, 'Longest conversation to keep, in characters; 0: any length.', at_least=0),
    scrub=Key(True, 'Replace e-mail and network addresses and telephone, card and account numbers.'),
    similarity=Key(
        0.5,
        'Jaccard similarity from which two openings count as near-duplicates, which share a split. Sketches of '
        'openings have too few numbers for more than 0.96.',
        above=0,
        at_most=0.96,
    ),
    heldout=Key(
        0.1,
        'Share of clusters of near-duplicates that goes to the validation split, where file names do not state the '
        'split.',
        at_least=0,
        below=1,
    ),
    max_conversations=Key(0, 'Maximum number of conversations to keep, chosen by a hash; 0: all.', at_least=0),
    max_per_user=Key(0, 'Maximum number of conversations to keep of one user, the newest; 0: all.', at_least=0),
    # Of 836 conversations in our sample of WildChat 16 open with "hi", as 20,000 of a million would.
    max_nearly_same=Key(
        100,
        'Maximum number of conversations to keep whose openings are near-duplicates, chosen by a hash; 0: all. A '
        'hundred still show how people continue, and a pasted template does not dominate what is learned.',
        at_least=0,
    ),
    salt=Key(
        '',
        'File, kept apart from the data, with the salt that turns user ids into keys; the stage creates it if it is '
        'missing. Empty: user ids stay as they are.',
    ),
    opt_out=Key('', 'File of user ids, one a line, as the raw records hold them; nothing of these users is kept.'),
    workers=Key(2, 'Processes that read files at the same time.', at_least=1),
    fields=INGEST_FIELDS,
)

FOLLOW_UPS = Section(
    'The stage follow_ups: what each user turn after a reply is.',
    labeller=Key(
        'teacher',
        'Who labels: the teacher, or a head trained by `python -m data_pipelines.head_labels`.',
        choices=('teacher', 'head'),
    ),
    head=Key('', 'Folder of that head.'),
    min_confidence=Key(
        0.5, 'Minimum confidence, a probability, of feedback that rewrites and personas are made from.', at_least=0
    ),
)

PERSONAS = Section(
    'The stage personas: what users like, inferred from their feedback.',
    scope=Key(
        'earlier_conversations',
        "Which feedback a persona is made from: that of the user's earlier conversations, or, where users have no ids, "
        'that of the first turns of the same conversation; pairs then come from later turns.',
        registry='data_pipelines.persona.scopes:SCOPES',
    ),
    # A user's first feedback is in their second turn at the earliest.
    first_k=Key(2, 'User turns that first_k_turns reads.', at_least=2),
    writer=Key(
        'teacher',
        'Who words a claim. teacher: the teacher. quotes: the user, whose remark itself is the claim.',
        choices=('teacher', 'quotes'),
    ),
    samples=Key(
        4, 'Sentences that the teacher drafts for each remark; the first that follows from it is the claim.', at_least=1
    ),
    max_claims=Key(8, 'Maximum number of claims in a persona, the newest.', at_least=1),
    max_tokens=Key(128, 'Longest persona, in tokens of the policy.', at_least=1),
    corrections=Key(
        '',
        'JSON lines of edits and deletions, written by `python -m data_pipelines.persona_store`; empty: beside the '
        'folder data.personas.',
    ),
)

REWRITES = Section(
    "The stage rewrites: replies written again under users' feedback.",
    regenerate=Key(
        True,
        'Let the policy answer the request again; its reply, not the logged one, is the rejected side of the pair.',
    ),
    from_scratch=Key(False, 'Control: do not show the feedback to the teacher.'),
    max_feedback_drop=Key(
        2.0,
        'Largest allowed drop in log p(feedback), in nats, from the logged to the regenerated reply; beyond it the '
        'feedback does not apply.',
        at_least=0,
    ),
    max_turns=Key(0, 'Maximum number of feedback turns to rewrite under, chosen by a hash; 0: all.', at_least=0),
    samples=Key(4, 'Rewrites sampled for each feedback turn; the best of them is kept.', at_least=1),
    max_resemblance=Key(
        0.95,
        'Largest allowed resemblance of a rewrite to an earlier text of the conversation, from 0 to 1; beyond it the '
        'rewrite is a copy.',
        above=0,
        at_most=1,
    ),
    min_gain=Key(
        0.0,
        'Least gain, in nats, of a rewrite: how much likelier the feedback makes it than a mere "I do not like this '
        'answer" does.',
    ),
)

CANDIDATES = Section(
    'The stage candidates: N replies to each prompt, scored by the reward model.',
    samples=Key(8, 'N, the replies sampled for each prompt.', at_least=1),
    reward_model=Key('', 'Model folder or workdir of the reward model; empty: replies are not scored.'),
    max_prompts=Key(0, 'Maximum number of prompts, those with a persona first, then by a hash; 0: all.', at_least=0),
)

PAIRS = Section(
    'The stage pairs: preference pairs from rewrites and candidates, probed for artefacts.',
    sources=Key('rewrites,candidates', 'Stages that pairs come from, joined by commas: rewrites, candidates.'),
    min_score_gap=Key(
        0.0,
        'The scores of the best and the worst candidate must differ by more than this, in their own unit.',
        at_least=0,
    ),
    max_artefact_auc=Key(
        0.7,
        'Largest allowed AUC of a classifier that tells chosen from rejected by the replies alone; above it training '
        'is refused.',
        at_least=0,
        at_most=1,
    ),
    accept_artefacts=Key(False, 'Train on such pairs all the same.'),
    min_pairs=Key(16, 'Minimum number of training pairs; with fewer, training is refused.', at_least=1),
)

SATISFACTION = Section(
    'The evaluation satisfaction: whether replies meet the tastes of simulated users.',
    model=Key('', 'Model folder or workdir of the policy to evaluate; empty: model.path.'),
    split=Key('test', 'Split of the users: train, validation or test.'),
    conditions=Key(
        'own,other',
        "Personas that the policy sees, joined by commas: own (the user's), other (that of a user with opposite "
        'tastes) and, if wanted, empty (none). own and other are required.',
    ),
    max_prompts=Key(0, 'Maximum number of prompts to evaluate, chosen by a hash; 0: all.', at_least=0),
)
