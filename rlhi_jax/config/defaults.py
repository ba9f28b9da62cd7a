"""Every configuration key there is, with its default; experiments in `configs/` start from here and change a few.

Values marked "sibling default" follow the same team's published DPO runs on WildChat (arXiv 2506.21495); RLHI's own are
not published. The others are ours.
"""

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """The default configuration; unknown keys and wrong types are refused from here on."""
    c = ConfigDict()
    c.objective = 'dpo'  # dpo, reward or sft
    c.seed = 0
    c.compilation_cache = '.cache/compiled'  # folder or bucket of compiled programs; pods: a shared one; '': none
    c.beam = ''  # options of Beam pipelines, such as '--runner=DataflowRunner'; '': no pipelines

    c.model = ConfigDict()
    c.model.path = ''  # folder of `rlhi_jax.convert import`, or an earlier run's workdir
    c.model.new_head = False  # reward: put a fresh score head on a language model
    c.model.dtype = 'bfloat16'  # compute dtype; master weights are float32
    c.model.remat = 'save_dots'
    c.model.logprob_chunk = 128  # scored tokens whose vocabulary logits exist at once, per row

    c.data = ConfigDict()
    c.data.raw = ''  # raw conversations: files, folders or hf://OWNER/NAME[@REVISION][/PATH], joined by commas
    c.data.conversations = ''  # folders that the stages of the same names write
    c.data.follow_ups = ''
    c.data.personas = ''
    c.data.rewrites = ''
    c.data.prompts = ''  # what candidates are sampled for; '': every turn of the conversations, with its persona
    c.data.candidates = ''
    c.data.scores = ''  # scores of candidates by something else than the reward model
    c.data.satisfaction = ''
    c.data.pairs = ''  # preference JSONL: files, or folders of the stage `pairs`, joined by commas
    c.data.split = 'train'  # which split of such folders becomes shards
    c.data.shards = ''  # interaction shards
    c.data.rows = ''  # row plan
    c.data.datasets = ''  # TFDS data sets of conversations and shards
    c.data.card = ''  # data card: counts, distributions and examples of what stages left in the folders above
    c.data.reference = ''  # cache of reference log-probabilities, to share between runs; '': in the workdir
    c.data.trees_per_shard = 1000
    c.data.threads = 2  # that read rows ahead

    c.simulated = ConfigDict()
    c.simulated.users = ConfigDict(dict(train=48, gate=8, test=24))
    c.simulated.pairs = 'length,layout,address'  # opposing pairs of tastes
    c.simulated.held_out = ''  # pairs that occur in the test split alone
    c.simulated.conversations = 6  # of each user: their history
    c.simulated.prompts = 6  # further requests of each user
    c.simulated.special_every = 0  # of so many users, one changes their mind and one depends on the request; 0: none

    c.teacher = ConfigDict()
    # What labels, describes users and rewrites: a model folder, or the base URL of an OpenAI-compatible endpoint, such
    # as http://localhost:8000/v1; '': the policy, config.model.path.
    c.teacher.path = ''
    c.teacher.row_tokens = 1024  # of a row of a local teacher's judgements
    c.teacher.model = ''  # the name that the endpoint knows it by; the rest of this section is of endpoints too
    c.teacher.key_variable = 'OPENAI_API_KEY'  # environment variable that holds the key; local servers need none
    c.teacher.temperature = 0.0  # of a judgement in JSON; a bad one is drawn again at config.sampler.temperature
    c.teacher.attempts = 3  # at such a judgement, each with another seed; then it is counted as missing
    c.teacher.concurrency = 16  # requests at once
    c.teacher.timeout = 120.0  # seconds of silence, or 5 times as many in all, before a request is sent again
    c.teacher.retries = 30  # of a request that fails, after 0.5 to 8 s each: a restart of 3 minutes is survived
    c.teacher.budget = 0  # tokens that a stage may spend before it stops, to go on once this is raised; 0: any
    c.teacher.price_in = 0.0  # per million tokens of prompts, in any currency
    c.teacher.price_out = 0.0  # per million tokens of answers
    c.teacher.cache = ''  # file of answers by request, shared by stages and runs; '': none

    c.ingest = ConfigDict()
    c.ingest.languages = ''  # joined by commas, as the data names them; '': all, and those that do not say
    c.ingest.keep_toxic = False
    c.ingest.keep_redacted = True
    c.ingest.keep_jailbreaks = False  # requests that would argue the model out of its rules
    c.ingest.keep_refusals = False  # conversations in which every reply refuses
    c.ingest.max_characters = 200_000  # of a conversation; 0: any
    c.ingest.scrub = True  # replace e-mail and network addresses, telephone, card and account numbers
    c.ingest.similarity = 0.5  # openings at least this similar (Jaccard) count as near-duplicates
    c.ingest.heldout = 0.1  # share of clusters held out, where files are not named by split
    c.ingest.max_conversations = 0  # 0: all
    c.ingest.max_per_user = 0  # the newest; 0: all
    # Of conversations that open nearly the same (by `similarity`), so many are kept, chosen by hash; 0: all. Of 836 in
    # our sample of WildChat 16 open with "hi", as 20,000 of a million would: 100 still show how people go on from it,
    # and are too few for a pasted template to lead what is learned.
    c.ingest.max_nearly_same = 100
    c.ingest.salt = ''  # file, kept elsewhere, that turns users into keys; made if it is missing; '': ids as they are
    c.ingest.opt_out = ''  # file of ids of users, as records hold them, one a line: nothing of theirs is kept
    c.ingest.workers = 2  # processes that read side by side
    # Where a raw record holds what: keys joined by dots; of several paths, joined by |, the first that is there counts.
    c.ingest.fields = ConfigDict()
    c.ingest.fields.id = 'conversation_hash|conversation_id|id'
    c.ingest.fields.user = 'hashed_ip|user_id|user'
    c.ingest.fields.header = 'header'  # of the user's browser: part of their key, where ids are salted
    c.ingest.fields.ended = 'timestamp|metadata.timestamp|timestamp_s|created'
    c.ingest.fields.language = 'language|metadata.language'
    c.ingest.fields.toxic = 'toxic|openai_moderation.flagged|conversation.toxic'  # any of them
    c.ingest.fields.redacted = 'redacted|conversation.redacted'  # any of them
    c.ingest.fields.messages = 'conversation|messages|conversations'
    # The last reply, where it does not stand among the messages: the first of these that is text.
    c.ingest.fields.reply = 'response|choices.message.content|response.choices.message.content'
    c.ingest.fields.role = 'role|from'  # of a message, and so are these two
    c.ingest.fields.content = 'content|value'
    c.ingest.fields.said_at = 'timestamp'
    c.ingest.fields.user_role = 'user|human'  # names of who speaks
    c.ingest.fields.assistant_role = 'assistant|gpt|bot|model'
    c.ingest.fields.system_role = 'system|developer'

    c.follow_ups = ConfigDict()
    c.follow_ups.labeller = 'teacher'  # or head, trained by `data_pipelines.head_labels`
    c.follow_ups.head = ''  # its folder
    c.follow_ups.min_confidence = 0.5  # of feedback that is mined for rewrites and personas

    c.personas = ConfigDict()
    c.personas.scope = 'earlier_conversations'  # or first_k_turns, where users have no ids
    c.personas.first_k = 2
    c.personas.writer = 'teacher'  # or quotes: the user's own remarks
    c.personas.samples = 4  # of the teacher, for each remark: the first that follows from it is the claim
    c.personas.max_claims = 8  # of a persona: the newest
    c.personas.max_tokens = 128  # of a persona, counted by the policy's tokenizer
    c.personas.corrections = ''  # JSON lines that persona_store keeps; '': beside the folder data.personas

    c.rewrites = ConfigDict()
    c.rewrites.regenerate = True  # have the policy answer again first: what is rejected is what it would say
    c.rewrites.from_scratch = False  # control: the rewriter does not see the feedback
    c.rewrites.margin = 2.0  # nats by which feedback may be less likely after a regenerated reply than after the logged
    c.rewrites.max_turns = 0  # 0: all
    c.rewrites.samples = 4  # of which the best becomes the rewrite
    c.rewrites.max_resemblance = 0.95  # of more, from 0 to 1, a sample is a copy of what was said before
    c.rewrites.min_gain = 0.0  # nats by which the feedback must make a rewrite likelier than mere dislike does

    c.candidates = ConfigDict()
    c.candidates.samples = 8  # N of best-of-N
    c.candidates.reward_model = ''  # workdir or model folder
    c.candidates.max_prompts = 0  # 0: all

    c.pairs = ConfigDict()
    c.pairs.sources = 'rewrites,candidates'
    c.pairs.margin = 0.0  # scores of best and worst must differ by more
    c.pairs.max_artefact_auc = 0.7  # of a classifier that sees the replies alone
    c.pairs.accept_artefacts = False
    c.pairs.min_pairs = 16  # of fewer nothing is learned: training is refused

    c.satisfaction = ConfigDict()
    c.satisfaction.model = ''  # the policy to evaluate on simulated users; '': config.model.path
    c.satisfaction.split = 'test'
    c.satisfaction.conditions = 'own,opposing'  # whose persona the policy sees; also empty
    c.satisfaction.max_prompts = 0  # 0: all

    c.rows = ConfigDict()
    c.rows.tokens = 1024  # sibling default: length 1,024; TPUs attend fastest in rows of a multiple of 512
    c.rows.scored = 1024
    c.rows.pairs = 8

    c.sampler = ConfigDict()
    c.sampler.slots = 32  # sequences that are decoded side by side
    c.sampler.prompt_tokens = 512
    c.sampler.new_tokens = 512
    c.sampler.temperature = 1.0  # sibling default; 0: greedy
    c.sampler.top_p = 1.0  # sibling default

    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, context=1))

    c.train = ConfigDict()
    c.train.epochs = 1
    c.train.max_steps = 0  # 0: as many as the epochs give
    c.train.batch_rows = 32  # rows of one optimizer step; sibling default: batch 32
    c.train.accumulate = 1  # batches that a step is split into

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1e-6  # sibling default
    c.optimizer.schedule = 'constant'  # constant, linear or cosine; both decay to 0
    c.optimizer.warmup_steps = 0
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8  # sibling default
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip = 0.1  # global gradient norm; sibling default

    c.dpo = ConfigDict()
    c.dpo.variant = 'sigmoid'  # sigmoid, hinge or ipo
    c.dpo.beta = 0.01  # sibling default
    c.dpo.label_smoothing = 0.0

    c.reward = ConfigDict()
    c.reward.center = 0.0

    c.loop = ConfigDict()
    c.loop.method = 'both'  # rewrites, rewards, both or oracle
    c.loop.simulated = False  # converse with simulated users first, instead of reading data.raw
    c.loop.oracle_personas = False  # simulated users say what they like: no conversations, no teacher
    c.loop.smoke = False  # the report says that it is no evidence
    c.loop.reward = ConfigDict(dict(epochs=1, learning_rate=1e-5))
    c.loop.dpo = ConfigDict(dict(epochs=1, learning_rate=1e-6))

    c.policy_sees_persona = True
    c.sampler_sees_persona = True
    c.ref_sees_persona = True
    c.rm_sees_persona = True

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 100
    c.checkpoint.keep = 2

    c.log = ConfigDict()
    c.log.every_steps = 1

    c.eval = ConfigDict()
    c.eval.shards = ''  # held-out interaction shards
    c.eval.batch_rows = 8
    c.eval.max_trees = 0  # evaluate this many trees, the first by hash of their id; 0: all
    c.eval.shuffle_seed = 0  # which stranger's persona stands in for one's own
    return c.lock()
