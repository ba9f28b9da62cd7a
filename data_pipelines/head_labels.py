"""Trains a head, a small classifier that labels follow-up turns, for `config.follow_ups.labeller='head'`.

    python -m data_pipelines.head_labels --config=configs/NAME.py --labels=LABELS.jsonl --to=DIR

Each line of LABELS.jsonl is a JSON object with the `id` (CONVERSATION/TURN_INDEX) and `label` of a turn in
`config.data.conversations`. Write the labels by hand, or use the records.jsonl of a `follow_ups` folder that a teacher
labelled. `data_pipelines/labelling/by_head.py` describes the head.

Before the head is written, the same training is cross-validated: each head is tested on clusters of conversations that
it was not trained on. The report is printed and stored in the head's folder. For each confidence threshold, the report
gives the precision and recall of the label `reattempt_with_feedback`, because later stages use turns with this label.
"""

from absl import flags

from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_string('labels', None, 'File of JSON lines with the id and label of a turn.')
    flags.DEFINE_string('to', None, 'Folder to write the head to.')
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')
    start()

import json
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.core.inputs import read_records
from data_pipelines.labelling.by_head import Head
from data_pipelines.labelling.cross_validation import FOLDS, cross_validated, folds
from data_pipelines.labelling.labels import FEEDBACK, LABELS, UserTurn, turns_after_replies
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, new_folder


def read_labels(path: Path, config: ConfigDict) -> tuple[list[UserTurn], list[str], list[str]]:
    """Return the labelled turns, their labels, and the clusters of their conversations.

    Raises:
      UserError: the file is missing, a line is not a JSON object with a turn's id and label, or there are too few
        labels for cross-validation.
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
            f'--labels={path} does not suffice for cross-validation ({feedback} of {len(turns)} turns are '
            f'{FEEDBACK}): label at least {FOLDS} turns as {FEEDBACK} and {FOLDS} as something else, in '
            'different conversations'
        )
    return turns, labels, clusters


def _labels_by_turn(path: Path) -> dict[str, str]:
    """Return the labels in a file, keyed by turn id."""
    if not path.is_file():
        raise UserError(f'--labels={path} does not exist: pass a JSON Lines file with the keys id and label')
    label_of = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            label_of[record['id']] = label = record['label']
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f'--labels={path}, line {number} is not a JSON object with id and label: fix the line'
            ) from None
        if label not in tuple(LABELS):  # a tuple, because the label may be unhashable
            raise UserError(
                f'--labels={path}, line {number}: {label!r} is not a label: choose from {", ".join(LABELS)}'
            )
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
    run(main)
