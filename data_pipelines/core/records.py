"""Types of the records that stages exchange as JSON lines.

Ids are text. A turn's id is CONVERSATION/TURN_INDEX (see `data_pipelines.core.turns`). A pair's id is the turn's id, a
space, and the pair's kind. Times are ISO 8601 in UTC, so sorting them as text sorts them by time. A time is '' if
the data does not contain it.
"""

from typing import Any, NotRequired, TypedDict

Record = dict[str, Any]  # for code that handles records of any kind

SPLITS = ('train', 'validation', 'test')
MINED_SPLITS = ('train', 'validation')  # rewrites and pairs come from these splits; the test split is for evaluation


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # 'user' or 'assistant', alternating; the first message is the user's
    content: str  # never empty, without leading or trailing white space


class Conversation(TypedDict):
    """One conversation of one user, as `ingest` stores it (records.jsonl in `config.data.conversations`)."""

    id: str
    user_id: str  # '' if the user is unknown
    began: str  # time of the first user turn, or of its reply
    ended: str  # time of the last user turn, or of its reply
    language: str  # as stated in the data; '' if not stated
    split: str  # one of SPLITS
    cluster: str  # shared by conversations that have the same user or nearly the same opening
    system: str  # system text before the first turn; '' if there is none
    messages: list[Message]


class FollowUp(TypedDict):
    """A user turn that follows a reply, with the label that the stage `follow_ups` gave the turn."""

    id: str  # turn id
    conversation: str  # id of the conversation that contains the turn
    turn_index: int  # index of the turn among the conversation's messages: 2, 4, …
    user_id: str
    split: str
    request: str  # the user turn before the reply
    reply: str  # the reply that the turn reacts to
    follow_up: str  # the turn itself
    label: str  # one of `data_pipelines.labelling.labels.LABELS`
    confidence: float  # probability of the label, from 0 to 1
    quote: str  # words of the turn that support the label
    mined: bool  # whether the turn is labelled as feedback with enough confidence for use in rewrites and personas


class Remark(TypedDict):
    """A feedback turn that may lead to a claim about its author."""

    id: str  # turn id
    user_id: str
    conversation: str
    turn_index: int
    said_at: str  # when the conversation ended; the turn's own time is not known
    quote: str  # opening of the turn, verbatim
    edited: bool  # whether a person reworded the claim (`python -m data_pipelines.persona_store edit`)


class Claim(Remark):
    """One sentence about what a user likes (claims.jsonl in `config.data.personas`)."""

    text: str


class PersonaVersion(TypedDict):
    """The claims that are valid from one conversation onwards."""

    since: str  # id of that conversation
    at: str  # when that conversation ended
    claims: list[str]  # claim ids, oldest first


class UserPersona(TypedDict):
    """A user's persona, based on their whole history (users.jsonl in `config.data.personas`)."""

    user_id: str
    persona: str  # '' if nothing is known
    versions: list[PersonaVersion]  # oldest first


class TurnPersona(TypedDict):
    """The persona at one user turn, based only on earlier turns (records.jsonl in `config.data.personas`)."""

    id: str  # turn id
    persona: str  # '' if nothing was known


class Rewrite(TypedDict):
    """A reply rewritten according to a user's feedback (records.jsonl in `config.data.rewrites`)."""

    id: str  # id of the feedback turn
    split: str
    user_id: str
    persona: str  # the author's persona at the time of the request
    messages: list[Message]  # the conversation, ending with the request
    feedback: str
    original: str  # the reply to improve
    rewrite: str
    gain: float  # nats by which the feedback makes the rewrite more likely


class Wish(TypedDict):
    """What an author wishes, as said in feedback and as claimed in the persona store."""

    author: str  # author id
    user_id: str  # '' if the user is unknown
    feedback: str  # the feedback turn
    claim: str  # the claim made from the feedback
    persona: str  # the author's persona from that claim on


class StrangerRecord(TypedDict):
    """Two answers to a user's request, under two authors' wishes (records.jsonl in `config.data.strangers`)."""

    id: str  # id of the user's feedback turn, a space, and 'stranger'
    conversation: str
    split: str
    user_id: str
    stranger_id: str  # the stranger's user id; '' if the stranger is unknown
    messages: list[Message]  # the conversation, ending with the request
    wishes: list[Wish]  # the user's and the stranger's
    replies: list[str]  # the answer under the user's wish and the answer under the stranger's
    leans: list[float]  # by how many nats each answer leans to its own wish


class SampledReply(TypedDict):
    """A reply sampled from the policy."""

    text: str
    finished: bool  # False if the text was cut off at `config.sampler.new_tokens`


class Candidate(TypedDict):
    """A request with its sampled replies (records.jsonl in `config.data.candidates`)."""

    id: str  # turn id of the request, or id of the prompt
    split: str
    user_id: str
    persona: str
    messages: list[Message]  # the conversation, ending with the request
    replies: list[SampledReply]
    scores: NotRequired[list[float | None]]  # how well each reply suits the user; None if it does not fit in a row


class CandidateScores(TypedDict):
    """Scores of a request's replies, from a source other than the reward model (`config.data.scores`)."""

    id: str
    scores: list[float | None]


class PreferenceRecord(TypedDict):
    """A preference pair (SPLIT.jsonl in `config.data.pairs`). TRL reads its last three fields without conversion."""

    id: str
    conversation: str
    split: str
    user_id: str
    stranger_id: NotRequired[str]  # the other user of a pair made from two wishes; '' if that user is unknown
    persona: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


class RatedReply(TypedDict):
    """A reply that a user liked or disliked (SPLIT.jsonl in `config.data.pairs`).

    TRL's KTO trainer reads `prompt`, `completion` and `label` without conversion.
    """

    id: str
    conversation: str
    split: str
    user_id: str
    persona: str
    prompt: list[Message]
    completion: list[Message]
    label: bool  # whether the user liked the reply
    follow_up: str  # the user's next turn, which shows whether they liked the reply


class SimulatedUser(TypedDict):
    """A simulated user and their tastes (the simulator's users.jsonl), for evaluation only."""

    id: str
    user_id: NotRequired[str]  # the user's id in conversations
    split: str
    tastes: dict[str, str]  # the side that the user prefers, such as 'short', keyed by taste
    flips: str  # the taste that changes sides halfway through the history; '' if none does
    depends: str  # the taste that applies to one kind of request only; '' if none does


class PromptRecord(TypedDict):
    """A request to sample replies for (`config.data.prompts`)."""

    id: str
    user_id: str
    persona: str
    split: str
    messages: list[Message]


class SatisfactionRecord(TypedDict):
    """A checked reply to a simulated user under one persona condition (records.jsonl in `config.data.satisfaction`)."""

    id: str  # prompt id
    user_id: str
    condition: str  # whose persona the policy saw: 'own', 'other' (a user with opposite tastes) or 'empty' (none)
    persona: str
    request: str
    text: str
    finished: bool
    valid: bool  # whether the reply could satisfy any user
    satisfaction: float  # fraction of the user's tastes that the reply satisfies, from 0 to 1; 0 if not `valid`
    met: dict[str, float]  # for each taste, 1 if the reply is valid and satisfies the taste, otherwise 0


class GateRecord(TypedDict):
    """A question with the replies of an old and of a new policy (records.jsonl in `config.data.gate`)."""

    id: str  # 'request' and the prompt's id, or 'instruction' and its number
    user_id: str  # '' for an instruction, or if the user is unknown
    request: str
    before: list[SampledReply]  # by the old policy
    after: list[SampledReply]  # by the new policy
