"""The interaction tree as text: the user, the persona, the messages, and preferences between replies.

Each message points to its parent, which comes earlier in the list. Replies to the same message are siblings. The trunk
is the conversation that took place. A reply that the user was unhappy with is usually on the trunk, because the
conversation continued after it:

    persona 'Likes brief answers.'
    0 user       What is RLHI?
    ├─ 1 assistant  RLHI is a long story …           rejected, on the trunk
    │  └─ 2 user       Shorter, please.
    │     └─ 3 assistant  Learning from users.
    └─ 4 assistant  Learning from users' own chats.   chosen
    Pair(id='c7/0', prompt=0, chosen=4, rejected=1)
"""

import dataclasses
import json
from typing import Any, NamedTuple

ROLES = ('user', 'assistant')
MAX_WEIGHT, MAX_MARGIN = 1e30, 1e6  # limits for each pair; they keep sums over a batch finite in float32
NONE = -1  # used as the index of a message that does not exist


class BadRecord(Exception):
    """Raised for a record that cannot be used; such records are counted by `reason`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn; `parent` is the index of the turn before it, or -1 for the first turn."""

    parent: int
    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A preference between two replies to the same prompt.

    A reply consists of all assistant messages after the prompt, up to and including the reply's last message.

    Attributes:
      prompt: index of the prompt's last message.
      chosen: index of the chosen reply's last message; NONE if only a rejected reply is known.
      rejected: index of the rejected reply's last message; NONE if only a chosen reply is known.
      margin: the amount by which the chosen reply's reward should exceed the rejected reply's.
      chosen_prompt: index of the last message of the chosen reply's prompt; NONE if both replies have the same prompt.
        In a hindsight pair, the prompts differ: the chosen reply's prompt also contains the user's follow-up. The
        messages `prompt` and `chosen_prompt` have the same parent.
      tied: whether neither reply is better. Which of the two is called chosen then means nothing.
    """

    id: str
    prompt: int
    chosen: int
    rejected: int
    weight: float = 1.0
    margin: float = 0.0
    chosen_prompt: int = NONE
    tied: bool = False

    @property
    def sides(self) -> tuple['Reply | None', 'Reply | None']:
        """Return the chosen and the rejected reply; None for a reply that is not known."""
        chosen_prompt = self.prompt if self.chosen_prompt == NONE else self.chosen_prompt
        chosen = None if self.chosen == NONE else Reply(chosen_prompt, self.chosen)
        return chosen, None if self.rejected == NONE else Reply(self.prompt, self.rejected)

    def to_list(self) -> list[Any]:
        """Return the fields in order, without trailing fields that have their default value."""
        fields = list(dataclasses.astuple(self))
        while len(fields) > 5 and fields[-1] == _PAIR_DEFAULTS[len(fields) - 1]:
            fields.pop()
        return fields


_PAIR_DEFAULTS = [field.default for field in dataclasses.fields(Pair)]


class Reply(NamedTuple):
    """A reply in a tree, given by two message indices: its prompt's last message and its own last message."""

    prompt: int
    last: int


@dataclasses.dataclass(frozen=True)
class Interaction:
    """A persona, a branching conversation, and the preferences between its replies."""

    id: str
    messages: tuple[Message, ...]
    pairs: tuple[Pair, ...]
    user_id: str = ''
    persona: str = ''
    system: str = ''

    def path(self, node: int) -> list[int]:
        """Return the message indices from the root to a message, both included."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.messages[node].parent
        return path[::-1]

    def reply(self, prompt: int, last: int) -> list[int]:
        """Return the message indices of a reply's assistant turns, first to last."""
        below = self.path(last)[len(self.path(prompt)) :]
        return [node for node in below if self.messages[node].role == 'assistant']

    def to_bytes(self) -> bytes:
        """Return the tree as UTF-8 JSON; equal trees give equal bytes."""
        record = dataclasses.asdict(self)
        record['messages'] = [[m.parent, m.role, m.content] for m in self.messages]
        record['pairs'] = [pair.to_list() for pair in self.pairs]
        return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(',', ':')).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> 'Interaction':
        """Read a tree from the bytes that `to_bytes` returned."""
        record = json.loads(data)
        record['messages'] = tuple(Message(*fields) for fields in record['messages'])
        record['pairs'] = tuple(Pair(*fields) for fields in record['pairs'])
        return cls(**record)


Turns = tuple[tuple[str, str], ...]  # the (role, content) of each turn


@dataclasses.dataclass(frozen=True)
class Preference:
    """A parsed and checked preference: a better and a worse continuation of a prompt, or only one of them.

    Attributes:
      chosen: the better continuation; empty if only a disliked continuation is known.
      rejected: the worse continuation; empty if only a liked continuation is known.
      chosen_prompt: the prompt of `chosen` if it differs from `prompt`, which is possible only in the last turn; empty
        if both prompts are the same.
      tied: whether neither continuation is better.
      kind: a name for the kind of pair, such as its source, by which an evaluation can group pairs; '' if unknown.
        Trees do not keep it.
    """

    id: str
    prompt: Turns
    chosen: Turns
    rejected: Turns
    system: str
    persona: str
    user_id: str
    weight: float
    margin: float = 0.0
    chosen_prompt: Turns = ()
    tied: bool = False
    kind: str = ''
