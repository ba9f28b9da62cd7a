"""PRISM's rated conversations (arXiv 2404.16019) → preference JSONL with each participant's persona, split by user.

    python -m data_pipelines.sources.prism --conversations=conversations.jsonl --survey=survey.jsonl --to=DIR

Writes DIR/train.jsonl, DIR/heldout.jsonl and DIR/manifest.json. Of the replies to a turn, rated from 1 to 100, the best
is preferred to the worst if at least `--margin` lies between them; the context is what was said before, with the
replies that the participant went on from. The persona is what they wrote to the model about how it should be
(`system_string`); what they say of themselves (`self_description`) tells of health, religion and politics, and is left.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.sources.rated import define_flags, held_out, named_file, write_preferences
from rlhi_jax.cli.program import require_flags, run

Turn = tuple[str, list[dict[str, Any]]]  # what the user said, and the rated replies


def read_lines(path: Path, counts: Counter) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; other lines are counted."""
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


def turns(history: list[dict[str, Any]]) -> list[Turn]:
    """A conversation's turns in order.

    Raises:
      KeyError, TypeError, ValueError: it is no such history.
    """
    found: dict[int, Turn] = {}
    for message in history:
        if message['role'] == 'user':
            found[int(message['turn'])] = (str(message['content']), [])
        else:
            reply = dict(
                content=str(message['content']), score=float(message['score']), kept=bool(message['if_chosen'])
            )
            found[int(message['turn'])][1].append(reply)
    return [found[turn] for turn in sorted(found)]


def preferences(record: dict[str, Any], persona: str, margin: float, counts: Counter) -> Iterator[dict[str, Any]]:
    """The preferences of one conversation; a turn without one is counted by its reason."""
    try:
        said, name, user = turns(record['conversation_history']), str(record['conversation_id']), record['user_id']
    except (KeyError, TypeError, ValueError):
        counts['dropped_no_conversation'] += 1
        return
    prompt: list[dict[str, str]] = []
    for number, (request, replies) in enumerate(said):
        counts['turns_read'] += 1
        prompt = [*prompt, dict(role='user', content=request)]
        ranked = sorted(replies, key=lambda reply: reply['score'])
        if len(ranked) < 2 or ranked[-1]['score'] - ranked[0]['score'] < margin:
            counts['dropped_within_margin'] += 1
        else:
            sides = zip(('chosen', 'rejected'), (ranked[-1], ranked[0]), strict=True)
            own = {side: [dict(role='assistant', content=reply['content'])] for side, reply in sides}
            yield dict(own, id=f'{name}/{2 * number}', prompt=prompt, user_id=str(user), persona=persona)
        kept = next((reply for reply in replies if reply['kept']), None)
        if kept is None:
            counts['turns_after_an_unknown_reply'] += len(said) - number - 1
            return
        prompt = [*prompt, dict(role='assistant', content=kept['content'])]


def main() -> None:
    require_flags('conversations', 'survey', 'to')
    files, counts = [named_file('conversations'), named_file('survey')], Counter()
    survey = read_lines(files[1], counts)
    personas = {record.get('user_id'): str(record.get('system_string') or '').strip() for record in survey}
    folds, fold = flags.FLAGS.folds, flags.FLAGS.fold
    train: list[dict[str, Any]] = []
    heldout: list[dict[str, Any]] = []
    for record in read_lines(files[0], counts):
        user = record.get('user_id')
        own = preferences(record, personas.get(user, ''), flags.FLAGS.margin, counts)
        (heldout if held_out(user, folds=folds, fold=fold) else train).extend(own)
    write_preferences('sources.prism', files, counts, train, heldout)


if __name__ == '__main__':
    define_flags('conversations', 'survey')
    flags.DEFINE_float('margin', 10.0, 'By how much, of 100, the best rating must be above the worst.')
    run(main)
