"""Convert PRISM's rated conversations (arXiv 2404.16019) into preference JSONL with personas, split by user.

    python -m data_pipelines.sources.prism --conversations=conversations.jsonl --survey=survey.jsonl --to=DIR

Writes DIR/train.jsonl, DIR/validation.jsonl and DIR/manifest.json. Participants rated the replies to each turn from
1 to 100. The best reply is preferred to the worst if their ratings differ by at least `--min_rating_gap`. The context
is the conversation before the turn, with the replies that the participant continued from. The persona is what the
participant wrote about how the model should behave (`system_string`). The participant's self-description
(`self_description`) is not used, because it reveals health, religion and politics.
"""

from absl import flags

from data_pipelines.sources.rated import define_flags, held_out, named_file, write_preferences
from rlhi_jax.cli.program import require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags('conversations', 'survey')
    flags.DEFINE_float(
        'min_rating_gap',
        10.0,
        'Smallest difference between the best and the worst rating (each from 1 to 100) for which a pair is made.',
    )
    start()

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.core.records import Message, Record
from data_pipelines.core.turns import turn_id


class RatedReply(NamedTuple):
    content: str
    rating: float  # 1 to 100
    kept: bool  # whether the participant continued from this reply


class RatedTurn(NamedTuple):
    """A request with the replies of several models."""

    request: str
    replies: list[RatedReply]


def read_lines(path: Path, counts: Counter) -> Iterator[Record]:
    """Yield the objects in a JSON Lines file. Lines that do not contain an object are skipped and counted."""
    for line in path.read_bytes().split(b'\n'):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                counts['dropped_no_record'] += 1


def rated_turns(history: Sequence[Record]) -> list[RatedTurn]:
    """Return a conversation's turns in order.

    Raises:
      KeyError, TypeError, ValueError: the history does not have the format that PRISM published.
    """
    turns: dict[int, RatedTurn] = {}
    for message in history:
        number, content = int(message['turn']), str(message['content'])
        if message['role'] == 'user':
            turns[number] = RatedTurn(content, [])
        else:
            reply = RatedReply(content, float(message['score']), bool(message['if_chosen']))
            turns[number].replies.append(reply)
    return [turns[number] for number in sorted(turns)]


def preferences(record: Record, persona: str, min_rating_gap: float, counts: Counter) -> Iterator[dict[str, Any]]:
    """Yield the preferences in one conversation. Turns that give no preference are counted by reason."""
    try:
        turns = rated_turns(record['conversation_history'])
        conversation, user = str(record['conversation_id']), record['user_id']
    except (KeyError, TypeError, ValueError):
        counts['dropped_no_conversation'] += 1
        return
    prompt: list[Message] = []
    for number, (request, replies) in enumerate(turns):
        counts['turns_read'] += 1
        turn = turn_id(conversation, len(prompt))
        prompt = [*prompt, Message(role='user', content=request)]
        ranked = sorted(replies, key=lambda reply: reply.rating)
        if len(ranked) < 2 or ranked[-1].rating - ranked[0].rating < min_rating_gap:
            counts['dropped_within_margin'] += 1
        else:
            chosen, rejected = ([Message(role='assistant', content=reply.content)] for reply in (ranked[-1], ranked[0]))
            yield dict(chosen=chosen, rejected=rejected, id=turn, prompt=prompt, user_id=str(user), persona=persona)
        kept = next((reply for reply in replies if reply.kept), None)
        if kept is None:
            counts['turns_after_an_unknown_reply'] += len(turns) - number - 1
            return
        prompt = [*prompt, Message(role='assistant', content=kept.content)]


def main() -> None:
    require_flags('conversations', 'survey', 'to')
    files, counts = [named_file('conversations'), named_file('survey')], Counter()
    conversations, survey = (read_lines(path, counts) for path in files)
    personas = {record.get('user_id'): str(record.get('system_string') or '').strip() for record in survey}
    folds, fold = flags.FLAGS.folds, flags.FLAGS.fold
    train: list[Record] = []
    validation: list[Record] = []
    for record in conversations:
        user = record.get('user_id')
        pairs = preferences(record, personas.get(user, ''), flags.FLAGS.min_rating_gap, counts)
        (validation if held_out(user, folds=folds, fold=fold) else train).extend(pairs)
    write_preferences('sources.prism', files, counts, train, validation)


if __name__ == '__main__':
    run(main)
