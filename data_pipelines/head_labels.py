"""Labels of follow-ups by a small trained head: three thousand turns a second on one core, no teacher.

    python -m data_pipelines.head_labels --config=configs/NAME.py --labels=LABELS.jsonl --to=DIR

Trains a head for `config.follow_ups.labeller='head'`. Labels are JSON lines of `id` (CONVERSATION/PLACE) and `label` of
turns of `config.data.conversations`: made by hand, or records.jsonl of a teacher's `follow_ups`. The head is a logistic
regression on hashed words and characters of the turn, on its first words as such, and on how it relates to request and
reply. Words are hashed, so a head holds no text of its users. It is judged by cross-validation over clusters of
conversations first, and says at which confidence `reattempt_with_feedback` can be mined with which precision.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from data_pipelines.core.stage import read_records
from data_pipelines.labelling.by_head import FOLDS, Head, folds, held_out_probabilities
from data_pipelines.labelling.labels import (
    FEEDBACK,
    LABELS,
    Turn,
    turns_after_replies,
)
from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, new_folder

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def cross_validated(turns: Sequence[Turn], labels: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """What a head does on turns of groups that it has not seen.

    Returns:
      turns; macro_f1 of all labels; auc and average_precision of FEEDBACK against the rest; and by threshold of its
      confidence how many turns would be mined, with which precision and recall.
    """
    names, probabilities = held_out_probabilities(turns, labels, groups)
    predicted = [names[best] for best in probabilities.argmax(axis=1)]
    wanted, score = np.array(labels) == FEEDBACK, probabilities[:, names.index(FEEDBACK)]
    mining = []
    for threshold in THRESHOLDS:
        mined = (np.array(predicted) == FEEDBACK) & (score >= threshold)
        right, count = int((mined & wanted).sum()), int(mined.sum())
        precision = right / count if count else None
        mining.append(dict(threshold=threshold, mined=count, precision=precision, recall=right / int(wanted.sum())))
    return dict(
        turns=len(turns),
        macro_f1=float(f1_score(labels, predicted, average='macro')),
        auc=float(roc_auc_score(wanted, score)),
        average_precision=float(average_precision_score(wanted, score)),
        mining=mining,
    )


def read_labels(path: Path, config: ConfigDict) -> tuple[list[Turn], list[str], list[str]]:
    """Labelled turns, their labels, and the clusters of their conversations.

    Raises:
      UserError: the file is missing, a line is no label, or too few of its turns are in the conversations.
    """
    if not path.is_file():
        raise UserError(f'--labels={path} does not exist: name a file of JSON lines of id and label')
    labels = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            told = json.loads(line)
            labels[told['id']] = label = told['label']
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{path}:{number} is no object of id and label: mend the line') from None
        if label not in tuple(LABELS):  # it may be anything
            raise UserError(f'{path}:{number}: {label!r} is no label: choose from {", ".join(LABELS)}')
    turns, groups = [], []
    for talk in read_records(config, 'conversations'):
        for _, turn in turns_after_replies(talk):
            if turn.id in labels:
                turns.append(turn)
                groups.append(talk['cluster'])
    found = [labels[turn.id] for turn in turns]
    count = found.count(FEEDBACK)
    enough = count >= FOLDS and len(set(groups)) >= FOLDS
    # Each head of the cross-validation must see feedback and something else.
    if not enough or not all(0 < sum(found[i] == FEEDBACK for i in fit) < len(fit) for fit, _ in folds(groups)):
        raise UserError(
            f'{path}: {len(turns)} of {len(labels)} turns are in config.data.conversations, {count} of them '
            f'{FEEDBACK}: label at least {FOLDS} of these, and some others, each in several of at least {FOLDS} '
            'clusters'
        )
    return turns, found, groups


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require_flags('labels', 'to')
    path = Path(flags.FLAGS.labels)
    turns, labels, groups = read_labels(path, config)
    with new_folder(Path(flags.FLAGS.to), overwrite=flags.FLAGS.overwrite) as folder:
        folder.chmod(0o700)
        report = cross_validated(turns, labels, groups)
        Head.fit(turns, labels).save(folder, made_from=digest(turns, labels), cross_validation=report)
    print(json.dumps(report, indent=2))


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_string('labels', None, 'JSON lines of id and label.')
    flags.DEFINE_string('to', None, 'Folder of the head to write.')
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')
    run(main)
