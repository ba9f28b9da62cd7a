"""Labels each user turn that follows a reply.

    python -m data_pipelines.follow_ups --config=configs/NAME.py

`data_pipelines/labelling/labels.py` defines the labels. Each label comes with a confidence and with the words of the
turn that support the label. `config.follow_ups.labeller` is 'teacher' for the teacher model, 'policy' for the model in
`config.model.path`, or 'head' for a small classifier trained with `data_pipelines/head_labels.py`.

Rewrites and personas are made only from turns that are labelled `reattempt_with_feedback` with a confidence of at least
`config.follow_ups.min_confidence`. In the records of these turns, the field `mined` is true.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import side_by_side
from data_pipelines.core.inputs import input_digest
from data_pipelines.core.passes import in_blocks
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import FollowUp
from data_pipelines.labelling import by_teacher
from data_pipelines.labelling.head_folder import head_digest
from data_pipelines.labelling.labels import AGAIN, FEEDBACK, LABELS, Judgement, UserTurn, repeats, turns_after_replies
from data_pipelines.reports.statistics import of_follow_ups
from data_pipelines.teacher.endpoint import spending
from data_pipelines.teacher.generation import model_identity
from data_pipelines.teacher.prompts import prompt_digest
from rlhi_jax.config import is_endpoint, require, teacher_path
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.resident import RESIDENT

if TYPE_CHECKING:
    from data_pipelines.labelling.by_head import Head

BLOCK = 2048  # number of turns that are judged together


def _identity(config: ConfigDict) -> dict[str, Any]:
    common = dict(conversations=input_digest(config, 'conversations'), settings=config.follow_ups.to_dict())
    if config.follow_ups.labeller == 'head':
        require(config, 'follow_ups.head')
        return common | dict(head=head_digest(Path(config.follow_ups.head)))
    path = labeller_path(config)
    common['teacher'] = model_identity(config, path)
    if is_endpoint(path):
        return common | dict(prompt=prompt_digest('label_follow_up'), labels=LABELS, schema=by_teacher.ANSWER)
    return common | dict(prompt=prompt_digest('follow_up'), row_tokens=config.teacher.row_tokens)


def labeller_path(config: ConfigDict) -> str:
    """Return the folder or endpoint of the model that labels the turns."""
    return config.model.path if config.follow_ups.labeller == 'policy' else teacher_path(config)


def _judge(task: Task, turns: list[UserTurn]) -> dict[str, Judgement | None]:
    """Return each turn's judgement, keyed by turn id. The value is None for a turn that could not be judged."""
    repeated = {turn.id: Judgement(AGAIN, 1.0, turn.text) for turn in turns if repeats(turn)}
    others = [turn for turn in turns if turn.id not in repeated]
    if task.config.follow_ups.labeller == 'head':
        return repeated | _head(Path(task.config.follow_ups.head)).judge(others)
    path = labeller_path(task.config)
    if is_endpoint(path):
        return repeated | by_teacher.by_answer(task, others)
    return repeated | by_teacher.by_likelihood(task, others, path)


def _head(folder: Path) -> 'Head':
    from data_pipelines.labelling.by_head import Head  # imports scikit-learn, which takes a second

    return RESIDENT.get(('head', str(folder.absolute()), head_digest(folder)), lambda: Head.load(folder))


def _follow_ups(task: Task, counts: Counter) -> Iterator[FollowUp]:
    turns = (
        (conversation, turn_index, turn)
        for conversation, _ in side_by_side(task.config)
        for turn_index, turn in turns_after_replies(conversation)
    )
    for block in in_blocks(turns, BLOCK):
        counts['turns_read'] += len(block)
        judgements = _judge(task, [turn for *_, turn in block])
        for conversation, turn_index, turn in block:
            judgement = judgements[turn.id]
            if judgement is None:
                counts['dropped_no_judgement'] += 1  # an invalid answer, or a turn too long for `row_tokens`
                continue
            confident = judgement.confidence >= task.config.follow_ups.min_confidence
            mined = judgement.label == FEEDBACK and confident
            counts[f'kept_{judgement.label}'] += 1
            counts['mined'] += mined
            yield FollowUp(
                **judgement._asdict(),
                id=turn.id,
                conversation=conversation['id'],
                turn_index=turn_index,
                user_id=conversation['user_id'],
                split=conversation['split'],
                mined=mined,
                request=turn.request,
                reply=turn.reply,
                follow_up=turn.text,
            )
    if task.config.follow_ups.labeller == 'teacher':
        counts.update(spending(task))


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter(turns_read=0, mined=0)
    return task.write(_follow_ups(task, counts), counts)


def require_feedback(counts: dict[str, int]) -> None:
    """Raise a UserError if the stage's counts say that no follow-up is usable as feedback, so no pairs can be made."""
    if counts['mined']:
        return
    labels = ', '.join(f'{name.removeprefix("kept_")} {n}' for name, n in counts.items() if name.startswith('kept_'))
    raise UserError(
        f'none of {counts["turns_read"]} follow-ups is labelled as feedback with enough confidence (labels: '
        f'{labels or "none"}): test the teacher with `python -m rlhi_jax.check`'
    )


STAGE = Stage(
    name='follow_ups',
    version=1,
    work=_work,
    output='data.follow_ups',
    identity=_identity,
    files={RECORDS: KEPT},
    steps=(Step('turns after a reply', ('turns_read',)),),
    shown=('mined',),
    summary=of_follow_ups,
)

if __name__ == '__main__':
    STAGE.main()
