"""Keys for the data pipeline: folders, the teacher, and one section for each stage.

All default values are ours, because RLHI's own values are not published.
"""

from rlhi_jax.config.keys import Key, Section

DATA = Section(
    'Data folders and files. Each stage reads the folders that it needs and writes the folder with its own name. The '
    'loop sets most of these keys to folders in its workdir.',
    raw=Key(
        '',
        'Raw conversations: files, folders or Hugging Face data sets (hf://OWNER/NAME[@REVISION][/PATH]), separated '
        'by commas.',
    ),
    conversations=Key('', "Folder of the 'ingest' stage: cleaned conversations, divided into splits."),
    follow_ups=Key('', "Folder of the 'follow_ups' stage: a label for each user turn after a reply."),
    personas=Key('', "Folder of the 'personas' stage: claims about users, and personas made from these claims."),
    rewrites=Key('', "Folder of the 'rewrites' stage: replies rewritten in response to users' feedback."),
    strangers=Key('', "Folder of the 'strangers' stage: answers to one request under two users' wishes."),
    prompts=Key(
        '',
        'JSON lines file of prompts to sample candidates for; each has id, user_id, persona, split and messages. '
        "Empty: all user turns of the training conversations except positive feedback, each with its user's persona.",
    ),
    candidates=Key('', "Folder of the 'candidates' stage: N sampled replies to each prompt, and their rewards."),
    scores=Key('', 'Candidate scores to use instead of the rewards: a folder of `data_pipelines.oracle_scores`.'),
    satisfaction=Key('', "Folder of the 'satisfaction' evaluation: replies, and whether simulated users like them."),
    gate=Key('', "Folder of the 'gate' stage: replies of an old and a new policy, and which of them is to be used."),
    pairs=Key(
        '',
        "Preference pairs as JSON lines: files, or folders of the 'pairs' stage, separated by commas. The stage writes "
        'one file per split.',
    ),
    split=Key('train', "Split that the 'shards' stage reads if data.pairs is a folder: train, validation or test."),
    feedback=Key(
        'paired',
        "What the 'shards' stage makes from rated replies in data.pairs. paired: for each prompt, a pair of the "
        'best-rated and the worst-rated reply. one_sided (for kto and reward): a chosen reply if the user liked it, '
        'or a rejected reply if not. hindsight (for the hindsight objective): a pair of the same reply with and '
        'without the follow-up in its prompt. chosen (for sft): as paired, but without the rejected reply, which sft '
        'does not learn from; this saves about half of the time.',
        choices=('paired', 'one_sided', 'hindsight', 'chosen'),
    ),
    ties=Key(
        'drop',
        "What the 'shards' stage does with pairs in data.pairs in which neither reply is better. drop: drop and count "
        'them. keep: keep them, for the reward objective with reward.ties above 0.',
        choices=('drop', 'keep'),
    ),
    max_users=Key(
        0,
        "Control experiment: maximum number of users whose preferences the 'shards' stage keeps, selected by hash; 0: "
        'all.',
        at_least=0,
    ),
    max_pairs=Key(
        0, "Maximum number of preferences that the 'shards' stage keeps, selected by hash; 0: all.", at_least=0
    ),
    shuffle_personas=Key(
        False,
        "Control experiment: the 'shards' stage gives each user the persona of another user. A model that still "
        'improves on personas did not learn it from them.',
    ),
    shards=Key('', "Folder of the 'shards' stage: interaction trees (a prompt and its replies) as ArrayRecord files."),
    rows=Key('', "Folder of the 'rows' stage: which interaction trees are packed into each row."),
    datasets=Key('', 'Folder of TFDS data sets of conversations and interactions, for other programs.'),
    card=Key('', "Folder of the data card: counts, distributions and examples from the stages' output."),
    reference=Key(
        '',
        'Folder that caches the log-probabilities of the reference model, so that runs can share them. Empty: cache '
        'them in the workdir.',
    ),
    trees_per_shard=Key(1000, 'Number of interaction trees per shard file.', at_least=1),
    threads=Key(2, 'Number of threads that read rows ahead of training.', at_least=1),
)

SIMULATED = Section(
    'Simulated users, a source of raw conversations. Programs can check whether a reply suits their tastes.',
    users=Section(
        'Number of users in each split.',
        train=Key(48, 'Users to train on.', at_least=0),
        validation=Key(8, 'Users held out for choosing settings.', at_least=0),
        test=Key(24, 'Users held out for evaluating satisfaction.', at_least=0),
    ),
    tastes=Key(
        'length,layout,address',
        'Tastes that users may have, separated by commas; at least three. Each taste has two opposite sides, such as '
        'short and long.',
    ),
    held_out=Key('', 'Additional tastes, separated by commas, that only users in the test split have.'),
    conversations=Key(6, 'Number of conversations per user, from which the persona is inferred.', at_least=0),
    prompts=Key(6, 'Number of additional requests per user, outside the conversations.', at_least=0),
    replies=Key(
        'policy',
        'What writes the replies in the conversations: the policy, or the teacher.',
        choices=('policy', 'teacher'),
    ),
    contrary=Key(
        False,
        'Tell the model that writes the replies, each time, to go against one taste of the user. Users of both sides '
        'of every taste then complain.',
    ),
    special_every=Key(
        0,
        'Every group of this many users has two special users. The first changes a taste halfway through their '
        'history. The second has a taste for one kind of request only, and wants the opposite for all other requests. '
        '0: no special users.',
        at_least=0,
    ),
)

TEACHER = Section(
    'The model that labels follow-ups, writes personas and rewrites replies. Only path and row_tokens apply to a local '
    'model; the other keys are for endpoints.',
    path=Key(
        '',
        'Model folder, or base URL of an OpenAI-compatible endpoint such as http://localhost:8000/v1. Empty: use '
        'model.path.',
    ),
    row_tokens=Key(1024, 'Maximum length, in tokens, of the text that a local model judges.', at_least=1),
    model=Key('', 'Name of the model at the endpoint.'),
    key_variable=Key(
        'OPENAI_API_KEY', 'Environment variable that contains the API key for the endpoint; local servers need no key.'
    ),
    temperature=Key(
        0.0,
        'Temperature of the first attempt at a judgement in JSON; later attempts use sampler.temperature.',
        at_least=0,
    ),
    attempts=Key(3, 'Maximum number of attempts at a judgement in JSON, each with a new seed.', at_least=1),
    concurrency=Key(16, 'Maximum number of requests in flight at the same time.', at_least=1),
    timeout=Key(
        120.0,
        'Seconds to wait for data from the endpoint before a request is sent again. A request is also sent again if '
        'its answer is not complete after five times this long.',
        at_least=1,
    ),
    retries=Key(
        30,
        'How many times a failed request is sent again, each time after 0.5 to 8 seconds; 30 retries outlast a server '
        'restart of 3 minutes.',
        at_least=0,
    ),
    budget=Key(
        0,
        'Total number of tokens, in prompts and answers, after which a stage stops; to resume, raise this limit and '
        'run the stage again. 0: no limit.',
        at_least=0,
    ),
    price_in=Key(0.0, 'Price per million prompt tokens, in any currency; used for the cost in manifests.', at_least=0),
    price_out=Key(0.0, 'Price per million answer tokens, in the same currency.', at_least=0),
    cache=Key(
        '',
        'SQLite file that caches answers, keyed by request, with the ids of the users whose text the request contains; '
        'stages and runs may share it. If the name ends in .jsonl, the file must contain recorded answers, and nothing '
        'is sent to the endpoint. Empty: no cache.',
    ),
)

INGEST_FIELDS = Section(
    'Where to find each field in a raw record: a path of keys joined by dots. If there are several paths, separated by '
    '|, the first path that the record has is used, unless stated otherwise.',
    id=Key('conversation_hash|conversation_id|id', 'Id of the conversation; if there is no id, a hash of the content.'),
    user=Key('hashed_ip|user_id|user', 'Id of the user.'),
    header=Key(
        'header',
        "The user's browser header. If ingest.salt is set, the user's key, which replaces the id, is a hash of id and "
        'header.',
    ),
    began=Key(
        'created_at|create_time|metadata.created_at',
        'Time when the conversation began. If a record has no other time, this counts as the time of all its turns.',
    ),
    ended=Key('timestamp|metadata.timestamp|timestamp_s|created', 'Time when the conversation ended.'),
    language=Key('language|metadata.language', 'Language of the conversation.'),
    toxic=Key('toxic|openai_moderation.flagged|conversation.toxic', 'Flags for toxic content; any set flag counts.'),
    redacted=Key('redacted|conversation.redacted', 'Flags for redacted content; any set flag counts.'),
    messages=Key('conversation|messages|conversations', 'List of messages.'),
    reply=Key(
        'response|choices.message.content|response.choices.message.content',
        'Last reply, if it is not one of the messages: the first of these fields that contains text.',
    ),
    role=Key('role|from', "In each message, the sender's role."),
    content=Key('content|value', 'In each message, the text.'),
    said_at=Key('timestamp', 'In each message, the time when it was sent.'),
    user_role=Key('user|human', 'Names for the role of the user, separated by |.'),
    assistant_role=Key('assistant|gpt|bot|model', 'Names for the role of the model, separated by |.'),
    system_role=Key('system|developer', 'Names for the role of the system message, separated by |.'),
)

INGEST = Section(
    "The 'ingest' stage: which raw conversations are kept, and how they are split.",
    languages=Key(
        '',
        'Languages to keep, separated by commas and spelled as in the data. Conversations without a language are kept '
        'too. Empty: all languages.',
    ),
    keep_toxic=Key(False, 'Keep conversations that are flagged as toxic in the data.'),
    keep_redacted=Key(True, 'Keep conversations that are flagged as redacted in the data.'),
    keep_jailbreaks=Key(False, 'Keep conversations with a request that tries to talk the model out of its rules.'),
    keep_refusals=Key(False, 'Keep conversations in which every reply is a refusal.'),
    max_characters=Key(200_000, 'Maximum length of a conversation to keep, in characters; 0: any length.', at_least=0),
    scrub=Key(True, 'Replace e-mail and network addresses, and telephone, card and account numbers.'),
    similarity=Key(
        0.5,
        'Minimum Jaccard similarity at which the openings of two conversations count as near-duplicates. An '
        'opening is the beginning of the first message. Near-duplicates go to the same split. MinHash only estimates '
        'the similarity and cannot tell values above 0.96 apart.',
        above=0,
        at_most=0.96,
    ),
    heldout=Key(
        0.1,
        'Share of clusters of near-duplicate conversations that go to the validation split, unless files are named '
        'after splits.',
        at_least=0,
        below=1,
    ),
    max_conversations=Key(0, 'Maximum number of conversations to keep, selected by hash; 0: all.', at_least=0),
    max_per_user=Key(0, 'Maximum number of conversations to keep per user, newest first; 0: all.', at_least=0),
    # In our WildChat sample, 16 of 836 conversations open with "hi"; in a million, about 20,000 would.
    max_nearly_same=Key(
        100,
        'Maximum number of conversations to keep from each cluster with near-duplicate openings, selected by hash; 0: '
        'all. The limit keeps a template that many users paste from dominating the training data.',
        at_least=0,
    ),
    salt=Key(
        '',
        'File with the salt for the hashes (keys) that replace user ids; store it apart from the data. If the file is '
        'missing, the stage creates it. Empty: user ids stay as they are.',
    ),
    opt_out=Key(
        '',
        'Text file with one user id per line, spelled as in the records; nothing from these users is kept. Empty: use '
        'the file DIR.opt_out, if --workdir=DIR is given and the file exists. `forget` adds users to this file.',
    ),
    workers=Key(2, 'Number of processes that read files at the same time.', at_least=1),
    fields=INGEST_FIELDS,
)

FOLLOW_UPS = Section(
    "The 'follow_ups' stage: a label for each user turn after a reply.",
    labeller=Key(
        'teacher',
        'What labels the turns: the teacher, the policy, or a head, which is a small classifier trained by '
        '`python -m data_pipelines.head_labels`. If the teacher is a weak model behind an endpoint, the policy may '
        'label better.',
        choices=('teacher', 'policy', 'head'),
    ),
    head=Key('', 'Folder of the trained head; used only if follow_ups.labeller is head.'),
    min_confidence=Key(
        0.5, 'Minimum confidence, a probability, for feedback to be used in rewrites and personas.', at_least=0
    ),
)

PERSONAS = Section(
    "The 'personas' stage: what users like, inferred from their feedback.",
    scope=Key(
        'earlier_conversations',
        "Which feedback a persona is made from. earlier_conversations: feedback in the user's earlier conversations. "
        'first_k_turns: feedback in the first turns of the same conversation, for users without ids; pairs then come '
        'from later turns.',
        registry='data_pipelines.persona.scopes:SCOPES',
    ),
    # A user's second turn is the first that can contain feedback.
    first_k=Key(2, 'Number of user turns that first_k_turns reads.', at_least=2),
    writer=Key(
        'teacher',
        "Who words a claim. teacher: the teacher writes the claim. quotes: the user's own remark is the claim.",
        choices=('teacher', 'quotes'),
    ),
    samples=Key(
        4,
        'Number of sentences that the teacher drafts from each remark (the opening of a feedback turn); the first '
        'sentence that personas.audit allows becomes the claim.',
        at_least=1,
    ),
    audit=Key(
        'lasting',
        'Which claims may be stored. lasting: the remark states a wish that also holds for unrelated requests, and the '
        'claim follows from it. strict: the remark is about what replies should be like, and the claim follows '
        'from it. stated: the claim follows from the remark, which may be about the task. about_replies: the remark is '
        'about what replies should be like; whether the claim follows is not checked. safe: any claim without private '
        'or sensitive text and without text that addresses the model; all values exclude such text.',
        registry='data_pipelines.persona.audit:LEVELS',
    ),
    max_claims=Key(8, 'Maximum number of claims in a persona; the newest are kept.', at_least=1),
    max_tokens=Key(128, "Maximum length of a persona, in tokens of the policy's tokenizer.", at_least=1),
    corrections=Key(
        '',
        'JSON lines file of edits and deletions of claims, written by `python -m data_pipelines.persona_store`. Empty: '
        'a file next to the folder data.personas.',
    ),
)

REWRITES = Section(
    "The 'rewrites' stage: replies rewritten in response to users' feedback.",
    regenerate=Key(
        True,
        'Let the policy answer the request again; the new reply, not the logged one, is the rejected side of the pair.',
    ),
    from_scratch=Key(False, 'Control experiment: do not show the feedback to the teacher.'),
    shows_reply=Key(
        True,
        'Show the teacher the reply that the feedback is about. A small teacher follows feedback better if it sees '
        'only the request and the feedback, in one turn.',
    ),
    max_words=Key(
        0,
        'Maximum number of words that the teacher is asked to write. If the reply that the feedback is about is '
        'longer, the length of that reply is the limit. Feedback that asks for a shorter or longer reply sets the '
        'limit itself: half or twice the length of the reply. 0: the teacher is given no limit.',
        at_least=0,
    ),
    min_words=Key(
        0,
        'Minimum number of words that the teacher is asked to write, at most rewrites.max_words. A small teacher that '
        'is given only a maximum may answer in a few words.',
        at_least=0,
    ),
    max_feedback_drop=Key(
        2.0,
        'Maximum drop in log p(feedback), in nats, from the logged reply to the regenerated reply; if the drop is '
        'larger, the feedback does not apply to the regenerated reply.',
        at_least=0,
    ),
    max_turns=Key(0, 'Maximum number of feedback turns to use, selected by hash; 0: all.', at_least=0),
    samples=Key(4, 'Number of rewrites sampled per feedback turn; the best rewrite is kept.', at_least=1),
    max_resemblance=Key(
        0.95,
        'Maximum resemblance, from 0 to 1, between a rewrite and any earlier message in the conversation; above this, '
        'the rewrite counts as a copy.',
        above=0,
        at_most=1,
    ),
    min_gain=Key(
        0.0,
        'Minimum gain of a rewrite, in nats: how much more likely the rewrite is given the feedback than without it.',
    ),
)

STRANGERS = Section(
    "The 'strangers' stage: a request answered under its user's wish and under a stranger's.",
    max_claims=Key(0, 'Maximum number of claims to use, selected by hash; 0: all.', at_least=0),
    samples=Key(4, 'Number of answers sampled under each of the two wishes; the best answer is kept.', at_least=1),
    min_contrast=Key(
        0.0,
        'Minimum sum, over the two answers, of how much more likely an answer is under its own wish than under the '
        'other, in nats.',
        at_least=0,
    ),
)

CANDIDATES = Section(
    "The 'candidates' stage: N sampled replies to each prompt, scored by how well they suit the user.",
    samples=Key(8, 'N, the number of replies sampled per prompt.', at_least=1),
    scorer=Key(
        'reward_model',
        'What scores the replies. reward_model: the model candidates.reward_model. policy: the policy itself, by how '
        "much likelier the user's persona makes a reply than strangers' personas do; no reward model is trained.",
        choices=('reward_model', 'policy'),
    ),
    strangers=Key(4, 'Maximum number of strangers whose personas the scorer `policy` compares with.', at_least=1),
    reward_model=Key(
        '',
        'Model folder or workdir of the reward model. Empty: the stage scores no replies, and the loop trains a reward '
        'model.',
    ),
    max_prompts=Key(
        0,
        'Maximum number of prompts; prompts with a persona are selected first, then the rest by hash. 0: all.',
        at_least=0,
    ),
)

PAIRS = Section(
    "The 'pairs' stage: preference pairs, checked for artefacts that tell chosen from rejected replies.",
    sources=Key(
        'rewrites,candidates',
        'Stages that pairs come from, separated by commas: rewrites, candidates. A stage whose folder is not set in '
        'the section data is left out; at least one folder must be set.',
    ),
    against=Key(
        'policy',
        "What the teacher's replies are compared with, if rewrites are a source. policy: the reply that the user "
        "complained about. stranger: the teacher's answer under another user's wish ('strangers' stage). both: both.",
        choices=('policy', 'stranger', 'both'),
    ),
    min_score_gap=Key(
        0.0,
        'The scores of the best and the worst candidate must differ by more than this, in units of the score.',
        at_least=0,
    ),
    length_penalty=Key(
        0.0,
        'How much the score of a candidate is lowered for each word of the reply, before the best and the worst are '
        'chosen.',
        at_least=0,
    ),
    max_artefact_auc=Key(
        0.7,
        'Maximum AUC of a classifier that tells chosen from rejected replies and sees only the replies. If the AUC is '
        'higher, the stage stops with an error.',
        at_least=0,
        at_most=1,
    ),
    accept_artefacts=Key(False, 'Accept pairs even if the AUC is above max_artefact_auc.'),
    min_pairs=Key(16, 'Minimum number of training pairs; with fewer pairs, the stage stops with an error.', at_least=1),
)

SATISFACTION = Section(
    "The 'satisfaction' evaluation: whether replies satisfy the tastes of simulated users.",
    model=Key('', 'Model folder or workdir of the policy to evaluate; empty: model.path.'),
    split=Key('test', 'Split of the users: train, validation or test.'),
    conditions=Key(
        'own,other',
        "Personas that the policy sees, separated by commas: own (the user's own), other (the persona of a user with "
        'opposite tastes) and empty (no persona). own and other are required; empty is optional.',
    ),
    max_prompts=Key(0, 'Maximum number of prompts to evaluate, selected by hash; 0: all.', at_least=0),
    personas=Key(
        'inferred',
        "Where the loop takes the users' personas from: inferred from their conversations, or stated, which says "
        'exactly what they like.',
        choices=('inferred', 'stated'),
    ),
)

GATE = Section(
    "The 'gate' stage: whether a new policy replaces model.path, judged on the validation split.",
    model=Key('', 'Model folder or workdir of the new policy. The loop sets this key.'),
    satisfaction=Key(
        '',
        "Folders of the 'satisfaction' evaluation of validation users with the old and with the new policy, separated "
        'by a comma. The loop sets this key if simulated users can judge. Empty: held-out pairs of data.pairs judge.',
    ),
    prompts=Key(
        48, 'Maximum number of requests that both policies answer; see candidates.max_prompts. 0: all.', at_least=0
    ),
    samples=Key(2, 'Number of replies to each instruction.', at_least=1),
    min_gain=Key(0.0, 'The 95 % interval of what users gain must lie above this.', at_least=0),
    tolerance=Key(
        0.05,
        'By how much a share may become worse: of finished replies, refusals, followed instructions, agreement with '
        'false claims, and satisfaction under the own persona. A change whose interval includes 0 is tolerated.',
        at_least=0,
    ),
    max_length_ratio=Key(3.0, 'By which factor replies may become longer or shorter.', at_least=1),
    max_kl=Key(
        2.0, 'By how many nats per token of its replies the new policy may have moved away from the old one.', above=0
    ),
)
