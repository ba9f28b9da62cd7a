"""Trains a small head that labels follow-ups, for `config.follow_ups.labeller='head'`.

    python -m data_pipelines.head_labels --config=configs/NAME.py --labels=LABELS.jsonl --to=DIR

The labels are JSON lines with the `id` (CONVERSATION/TURN_INDEX) and `label` of turns in `config.data.conversations`.
Write them by hand, or use the records.jsonl of a `follow_ups` folder that a teacher labelled.
`data_pipelines/labelling/by_head.py` describes the head. Before the head is written, heads are cross-validated over
clusters of conversations. The report is printed and stored in the folder. It gives the precision of mining
`reattempt_with_feedback` at each confidence threshold.
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
    """Return the labelled turns, their labels, and the clusters of their conversations.

    Raises:
      UserError: the file is missing, a line is not a label, or the labels do not suffice for cross-validation.
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
    # Every head in the cross-validation must see both feedback and other labels.
    if not enough or not all(0 < sum(labels[i] == FEEDBACK for i in fit) < len(fit) for fit, _ in folds(clusters)):
        raise UserError(
            f'{path}: {len(turns)} of {len(label_of)} turns are in config.data.conversations, and {feedback} of them '
            f'are {FEEDBACK}: label at least {FOLDS} turns as {FEEDBACK} and some turns with other labels; both '
            f'kinds must occur in several of at least {FOLDS} clusters'
        )
    return turns, labels, clusters


def _labels_by_turn(path: Path) -> dict[str, str]:
    """Read the labels in a file, keyed by turn id."""
    if not path.is_file():
        raise UserError(f'--labels={path} does not exist: use a file of JSON lines with id and label')
    label_of = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            label_of[record['id']] = label = record['label']
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{path}:{number} is not a JSON object with id and label: fix the line') from None
        if label not in tuple(LABELS):  # a tuple, because the label may be unhashable
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
    flags.DEFINE_string('labels', None, 'File of JSON lines with id and label.')
    flags.DEFINE_string('to', None, 'Folder to write the head to.')
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')
    run(main)
