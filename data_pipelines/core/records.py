"""Records that cross files: one typed definition each, as JSON lines hold them.

Ids are text. A turn's id is CONVERSATION/TURN_INDEX (`data_pipelines.core.turns`), a pair's is TURN and, after a blank,
its kind. Times are ISO 8601 in UTC, so that text order is time order; '' where the data gives none.
"""

from typing import Any, NotRequired, TypedDict

Record = dict[str, Any]  # a record of any kind, for code that only moves records

SPLITS = ('train', 'validation', 'test')
MINED_SPLITS = ('train', 'validation')  # rewrites and pairs come from these; the test split is for evaluation alone


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # 'user' or 'assistant', in turn; the first is the user's
    content: str  # without outer white space, never empty


class Conversation(TypedDict):
    """One conversation of one user, as `ingest` keeps it (records.jsonl of `config.data.conversations`)."""

    id: str
    user_id: str  # '' if the user is unknown
    began: str  # time of the first turn or its reply
    ended: str  # time of the last turn or its reply
    language: str  # as the data names it; '' if it does not
    split: str  # one of SPLITS
    cluster: str  # conversations with nearly the same opening, or of one user, share it
    system: str  # system text before the first turn; '' for none
    messages: list[Message]


class FollowUp(TypedDict):
    """A user turn after a reply with its label, as `follow_ups` judges it."""

    id: str  # of the turn
    conversation: str  # id of its conversation
    turn_index: int  # of the turn among the conversation's messages: 2, 4, …
    user_id: str
    split: str
    request: str  # the user turn before the reply
    reply: str  # the reply that the turn reacts to
    follow_up: str  # the turn itself
    label: str  # one of `data_pipelines.labelling.labels.LABELS`
    confidence: float  # probability of the label, from 0 to 1
    quote: str  # words of the turn that support the label
    mined: bool  # feedback that is confident enough for rewrites and personas


class Remark(TypedDict):
    """A feedback turn from which a claim about its author may be made."""

    id: str  # of the turn
    user_id: str
    conversation: str
    turn_index: int
    said_at: str  # time at which the conversation ended, the only one known for the turn
    quote: str  # opening of the turn, word for word
    edited: bool  # whether a person reworded the claim (`python -m data_pipelines.persona_store edit`)


class Claim(Remark):
    """One sentence about what a user likes (claims.jsonl of `config.data.personas`)."""

    text: str


class PersonaVersion(TypedDict):
    """The claims that hold from one conversation on."""

    since: str  # id of the conversation
    at: str  # time at which it ended
    claims: list[str]  # ids, oldest first


class UserPersona(TypedDict):
    """A user's persona after their whole history (users.jsonl of `config.data.personas`)."""

    user_id: str
    persona: str  # '' if nothing is known
    versions: list[PersonaVersion]  # oldest first


class TurnPersona(TypedDict):
    """The persona at one user turn, from strictly earlier turns (records.jsonl of `config.data.personas`)."""

    id: str  # of the turn
    persona: str  # '' if nothing was known


class Rewrite(TypedDict):
    """A reply written again under a user's feedback (records.jsonl of `config.data.rewrites`)."""

    id: str  # of the feedback's turn
    split: str
    user_id: str
    persona: str  # of the request's author at that turn
    messages: list[Message]  # up to the request
    feedback: str
    original: str  # the reply to improve
    rewrite: str
    gain: float  # nats by which the feedback raises the rewrite's log-probability, over mere dislike


class SampledReply(TypedDict):
    """A reply drawn from the policy."""

    text: str
    finished: bool  # False if it was cut off at `config.sampler.new_tokens`


class Candidate(TypedDict):
    """A request with its sampled replies (records.jsonl of `config.data.candidates`)."""

    id: str  # of the request's turn, or of the prompt
    split: str
    user_id: str
    persona: str
    messages: list[Message]  # up to the request
    replies: list[SampledReply]
    scores: NotRequired[list[float | None]]  # rewards of the replies; None for one that fits no row


class CandidateScores(TypedDict):
    """Scores of a request's replies by something other than the reward model (`config.data.scores`)."""

    id: str
    scores: list[float | None]


class PreferenceRecord(TypedDict):
    """A preference pair (SPLIT.jsonl of `config.data.pairs`); TRL reads the last three fields as they are."""

    id: str
    conversation: str
    split: str
    user_id: str
    persona: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


class SimulatedUser(TypedDict):
    """A simulated user and their tastes (users.jsonl of the simulator): for evaluation alone."""

    id: str
    user_id: NotRequired[str]  # as conversations name the user
    split: str
    tastes: dict[str, str]  # taste → side
    flips: str  # the taste that changes sides halfway through the history; '' for none
    depends: str  # the taste that holds for one kind of request only; '' for none


class PromptRecord(TypedDict):
    """A request to sample replies for (`config.data.prompts`)."""

    id: str
    user_id: str
    persona: str
    split: str
    messages: list[Message]


class SatisfactionRecord(TypedDict):
    """A reply to a simulated user under a persona condition, checked (records.jsonl of `config.data.satisfaction`)."""

    id: str  # of the prompt
    user_id: str
    condition: str  # own, other or empty
    persona: str
    request: str
    text: str
    finished: bool
    valid: bool  # whether the reply can satisfy anybody
    satisfaction: float  # share of the user's tastes that a valid reply meets, from 0 to 1
    met: dict[str, float]  # the same by taste
