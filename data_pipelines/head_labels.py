"""Trains a small head that labels follow-ups, for `config.follow_ups.labeller='head'`.

    python -m data_pipelines.head_labels --config=configs/NAME.py --labels=LABELS.jsonl --to=DIR

Labels are JSON lines of `id` (CONVERSATION/TURN_INDEX) and `label` of turns of `config.data.conversations`: made by
hand, or the records.jsonl of a teacher's `follow_ups`. `data_pipelines/labelling/by_head.py` describes the head. Before
it is written, heads are cross-validated over clusters of conversations. The report, printed and stored in the folder,
says with which precision each confidence mines `reattempt_with_feedback`.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.inputs import read_records
from data_pipelines.labelling.by_head import Head
from data_pipelines.labelling.cross_validation import FOLDS, cross_validated, folds
from data_pipelines.labelling.labels import FEEDBACK, LABELS, UserTurn, turns_after_replies
from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, new_folder


def read_labels(path: Path, config: ConfigDict) -> tuple[list[UserTurn], list[str], list[str]]:
    """Labelled turns, their labels, and the clusters of their conversations.

    Raises:
      UserError: the file is missing, a line is not a label, or too few of its turns are in the conversations.
    """
    label_of = _labels_by_turn(path)
    turns, clusters = [], []
    for conversation in read_records(config, 'conversations'):
        for _, turn in turns_after_replies(conversation):
            if turn.id in label_of:
                turns.append(turn)
                clusters.append(conversation['cluster'])
    labels = [label_of[turn.id] for turn in turns]
    feedback = labels.count(FEEDBACK)
    enough = feedback >= FOLDS and len(set(clusters)) >= FOLDS
    # Each head of the cross-validation must see feedback and something else.
    if not enough or not all(0 < sum(labels[i] == FEEDBACK for i in fit) < len(fit) for fit, _ in folds(clusters)):
        raise UserError(
            f'{path}: {len(turns)} of {len(label_of)} turns are in config.data.conversations, and {feedback} of them '
            f'are {FEEDBACK}: label at least {FOLDS} of these and some others, each kind in several of at least '
            f'{FOLDS} clusters'
        )
    return turns, labels, clusters


def _labels_by_turn(path: Path) -> dict[str, str]:
    """The labels of a file by turn id."""
    if not path.is_file():
        raise UserError(f'--labels={path} does not exist: name a file of JSON lines with id and label')
    label_of = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            label_of[record['id']] = label = record['label']
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{path}:{number} is not an object with id and label: fix the line') from None
        if label not in tuple(LABELS):  # a tuple, since the label may be unhashable
            raise UserError(f'{path}:{number}: {label!r} is not a label: choose from {", ".join(LABELS)}')
    return label_of


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require_flags('labels', 'to')
    turns, labels, clusters = read_labels(Path(flags.FLAGS.labels), config)
    with new_folder(Path(flags.FLAGS.to), overwrite=flags.FLAGS.overwrite) as folder:
        folder.chmod(0o700)
        report = cross_validated(turns, labels, clusters)
        Head.fit(turns, labels).save(folder, made_from=digest(turns, labels), cross_validation=report)
    print(json.dumps(report, indent=2))


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_string('labels', None, 'JSON lines of id and label.')
    flags.DEFINE_string('to', None, 'Folder of the head to write.')
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')
    run(main)
