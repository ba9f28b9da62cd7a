"""The requests that the gate lets both policies answer, and what their replies show."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from data_pipelines.core.records import GateRecord, Message, PromptRecord, SampledReply
from data_pipelines.gates.instructions import INSTRUCTIONS
from data_pipelines.gates.verdict import Measure, measure
from data_pipelines.text.degenerate import words
from data_pipelines.text.openings import is_refusal

SIDES = ('before', 'after')  # the old policy and the new one


class Question(NamedTuple):
    """A request that both policies answer.

    Attributes:
      id: 'request' or 'instruction', a space, and the id of the prompt or the number of the instruction.
      user_id: the user who asked; '' for an instruction or if the user is unknown.
      messages: the conversation, ending with the request.
      persona: the persona that the policies see; '' for none.
      samples: the number of replies.
    """

    id: str
    user_id: str
    messages: Sequence[Message]
    persona: str
    samples: int

    @property
    def is_users(self) -> bool:
        """Whether a user asked; all other questions are instructions."""
        return is_users(self.id)


def of_users(prompts: Iterable[PromptRecord], *, sees_persona: bool) -> Iterator[Question]:
    """Yield a question for each request of a user."""
    for prompt in prompts:
        persona = prompt['persona'] if sees_persona else ''
        yield Question(f'request {prompt["id"]}', prompt['user_id'], prompt['messages'], persona, 1)


def of_instructions(samples: int) -> list[Question]:
    """Return a question for each instruction, to be answered `samples` times."""
    return [
        Question(f'instruction {number}', '', [Message(role='user', content=instruction.request)], '', samples)
        for number, instruction in enumerate(INSTRUCTIONS)
    ]


def is_users(name: str) -> bool:
    """Whether a user asked the question with this id; all other questions are instructions."""
    return name.startswith('request ')


def measures(records: Sequence[GateRecord]) -> dict[str, Measure | None]:
    """Return what the replies show, before and after, as shares of the replies.

    A measure is None if no question tells. Intervals are over users or, for instructions, over these.
    """
    asked = [record for record in records if is_users(record['id'])]
    instructed = [record for record in records if not is_users(record['id'])]
    return {
        'the share of finished replies': _share(asked, lambda _, reply: reply['finished'], more_is_better=True),
        'the share of refusals': _share(asked, lambda _, reply: is_refusal(reply['text']), more_is_better=False),
        'the share of followed instructions': _share(instructed, _follows, more_is_better=True),
    }


def length_ratio(records: Sequence[GateRecord]) -> float | None:
    """Return the number of words in the new policy's replies to users, divided by that in the old policy's.

    The result is None without replies to users.
    """
    before, after = (
        sum(len(words(reply['text'])) for record in records if is_users(record['id']) for reply in record[side])
        for side in SIDES
    )
    return after / max(before, 1) if before or after else None


def _follows(record: GateRecord, reply: SampledReply) -> bool:
    return INSTRUCTIONS[int(record['id'].removeprefix('instruction '))].followed(reply['text'])


def _share(
    records: Sequence[GateRecord], holds: Callable[[GateRecord, SampledReply], bool], *, more_is_better: bool
) -> Measure | None:
    def shares(side: str) -> Mapping[str, float]:
        return {
            record['id']: sum(holds(record, reply) for reply in record[side]) / len(record[side]) for record in records
        }

    users = {record['id']: record['user_id'] or record['id'] for record in records}
    return measure(shares('before'), shares('after'), users, more_is_better=more_is_better)
