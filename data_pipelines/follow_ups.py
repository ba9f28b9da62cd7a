"""Each user turn after a reply → what it is, how sure that is, and the words that say so.

    python -m data_pipelines.follow_ups --config=configs/NAME.py

Labels are those of `data_pipelines/labelling/labels.py`. `config.follow_ups.labeller` names the labeller: the
'teacher', or a 'head' trained by `data_pipelines/head_labels.py`. `reattempt_with_feedback` drives rewrites and
personas: such a turn is `mined` if its confidence is at least `config.follow_ups.min_confidence`.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import side_by_side
from data_pipelines.core.stage import Record, Stage, Task, in_blocks, input_digest
from data_pipelines.labelling import by_teacher
from data_pipelines.labelling.by_head import Head, head_digest
from data_pipelines.labelling.labels import AGAIN, FEEDBACK, LABELS, Judgement, Turn, repeats, turns_after_replies
from data_pipelines.teacher.endpoint import spending
from data_pipelines.teacher.generation import model_identity
from data_pipelines.teacher.prompts import prompt_digest
from rlhi_jax.config import is_endpoint, require, teacher_path

BLOCK = 2048  # turns that are judged together


def _identity(config: ConfigDict) -> dict[str, Any]:
    own = dict(conversations=input_digest(config, 'conversations'), settings=config.follow_ups.to_dict())
    if config.follow_ups.labeller == 'head':
        require(config, 'follow_ups.head')
        return own | dict(head=head_digest(Path(config.follow_ups.head)))
    teacher = model_identity(config, teacher_path(config))
    if is_endpoint(config.teacher.path):
        told = dict(prompt=prompt_digest('label_follow_up'), labels=LABELS, schema=by_teacher.ANSWER)
        return own | dict(told, teacher=teacher)
    return own | dict(teacher=teacher, prompt=prompt_digest('follow_up'), row_tokens=config.teacher.row_tokens)


def _judge(task: Task, turns: list[Turn]) -> dict[str, Judgement | None]:
    """The judgement of each turn by its id; None for one that the labeller has none of."""
    judged = {turn.id: Judgement(AGAIN, 1.0, turn.text) for turn in turns if repeats(turn)}
    asked, follow_ups = [turn for turn in turns if turn.id not in judged], task.config.follow_ups
    if follow_ups.labeller == 'head':
        return judged | task.keep('head', lambda: Head.load(Path(follow_ups.head))).judge(asked)
    if is_endpoint(task.config.teacher.path):
        return judged | by_teacher.by_answer(task, asked)
    return judged | by_teacher.by_likelihood(task, asked)


def _records(task: Task, counts: Counter) -> Iterator[Record]:
    turns = ((talk, *turn) for talk, _ in side_by_side(task.config) for turn in turns_after_replies(talk))
    for block in in_blocks(turns, BLOCK):
        counts['turns_read'] += len(block)
        judged = _judge(task, [turn for _, _, turn in block])
        for talk, place, turn in block:
            found = judged[turn.id]
            if found is None:
                counts['dropped_no_judgement'] += 1  # no valid answer, or longer than a row
                continue
            mined = found.label == FEEDBACK and found.confidence >= task.config.follow_ups.min_confidence
            counts[f'kept_{found.label}'] += 1
            counts['mined'] += mined
            yield dict(
                found._asdict(),
                id=turn.id,
                conversation=talk['id'],
                place=place,
                user_id=talk['user_id'],
                split=talk['split'],
                mined=mined,
                request=turn.request,
                reply=turn.reply,
                follow_up=turn.text,
            )
    if task.config.follow_ups.labeller == 'teacher':
        counts.update(spending(task))


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter(turns_read=0, mined=0)
    return task.write(_records(task, counts), counts)


STAGE = Stage('follow_ups', 1, _work, 'data.follow_ups', _identity)

if __name__ == '__main__':
    STAGE.main()
