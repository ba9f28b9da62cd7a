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
from typing import Any

ROLES = ('user', 'assistant')
MAX_WEIGHT = 1e30  # per pair, so that sums over a batch stay finite in float32


class BadRecord(Exception):
    """The error for a record that cannot be used; unusable records are counted by `reason`."""

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

    `prompt`, `chosen` and `rejected` are the indices of the prompt's last message and of each reply's last message.
    A reply consists of all assistant messages after the prompt, up to and including the reply's last message.
    """

    id: str
    prompt: int
    chosen: int
    rejected: int
    weight: float = 1.0


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
        record['pairs'] = [[p.id, p.prompt, p.chosen, p.rejected, p.weight] for p in self.pairs]
        return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(',', ':')).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> 'Interaction':
        """Read a tree from the bytes that `to_bytes` returned."""
        record = json.loads(data)
        record['messages'] = tuple(Message(*fields) for fields in record['messages'])
        record['pairs'] = tuple(Pair(*fields) for fields in record['pairs'])
        return cls(**record)


@dataclasses.dataclass(frozen=True)
class Preference:
    """A parsed and checked line of preference JSONL: two continuations of the same prompt."""

    id: str
    prompt: tuple[tuple[str, str], ...]  # (role, content)
    chosen: tuple[tuple[str, str], ...]
    rejected: tuple[tuple[str, str], ...]
    system: str
    persona: str
    user_id: str
    weight: float


def parse_preference(line: bytes | str, default_id: str) -> Preference:
    """Parse and check one line of preference JSONL.

    `prompt`, `chosen` and `rejected` are lists of `{"role", "content"}` messages, the format of TRL and `datasets`.
    Each may also be a string, which stands for a single user turn or reply. If `prompt` is missing, the opening that
    `chosen` and `rejected` share is the prompt. `persona`, `user_id`, `weight` (default 1) and `id` are optional.

    Raises:
      BadRecord: the line is not a valid preference.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRecord('not_json') from None
    if not isinstance(record, dict):
        raise BadRecord('not_an_object')
    if 'chosen' not in record or 'rejected' not in record:
        raise BadRecord('chosen_or_rejected_missing')
    chosen, rejected = (_turns(record[side], 'assistant') for side in ('chosen', 'rejected'))
    if record.get('prompt') is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = _turns(record['prompt'], 'user')
    system = ''
    if prompt and prompt[0][0] == 'system':
        system, prompt = prompt[0][1], prompt[1:]
    _check_roles(prompt, chosen, rejected)
    if chosen == rejected:
        raise BadRecord('chosen_equals_rejected')
    weight = 1.0 if record.get('weight') is None else record['weight']
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
        raise BadRecord('weight_not_a_number_from_0')
    texts = {name: record.get(name) for name in ('id', 'persona', 'user_id')}
    for name, text in texts.items():
        if isinstance(text, int) and not isinstance(text, bool) and name != 'persona':
            texts[name] = text = str(text)
        if text is not None and not isinstance(text, str):
            raise BadRecord(f'{name}_not_text')
    persona, user_id = (_clean(texts[name] or '') for name in ('persona', 'user_id'))
    return Preference(
        _clean(texts['id'] or default_id), prompt, chosen, rejected, system, persona, user_id, float(weight)
    )


def _turns(value: Any, role: str) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        value = [{'role': role, 'content': value}]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRecord('turns_not_a_list_of_messages')
    turns = []
    for turn in value:
        if not isinstance(turn.get('role'), str) or not isinstance(turn.get('content'), str):
            raise BadRecord('message_without_role_or_text')
        turns.append((turn['role'], _clean(turn['content'])))
    return tuple(turns)


def _clean(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecord('lone_surrogate') from None
    return text.strip()


def _check_roles(prompt: tuple, chosen: tuple, rejected: tuple) -> None:
    if not prompt or prompt[-1][0] != 'user':
        raise BadRecord('prompt_does_not_end_in_a_user_turn')
    if not chosen or not rejected or chosen[-1][0] != 'assistant' or rejected[-1][0] != 'assistant':
        raise BadRecord('reply_does_not_end_in_an_assistant_turn')
    for continuation in (chosen, rejected):
        for i, (role, content) in enumerate((*prompt, *continuation)):
            if role != ROLES[i % 2]:
                raise BadRecord('roles_do_not_alternate')
            if not content:
                raise BadRecord('empty_message')
