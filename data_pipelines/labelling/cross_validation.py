"""Cross-validates heads: each turn is judged by a head that was fitted without turns from the same group."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from data_pipelines.labelling.by_head import Head
from data_pipelines.labelling.labels import FEEDBACK, UserTurn

FOLDS = 5
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def folds(groups: Sequence[str], *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return FOLDS pairs of index arrays: of turns to fit a head on, and of turns from other groups to test it on.

    Args:
      groups: the group of each turn. There must be at least FOLDS distinct groups.
    """
    return list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(groups, groups=groups))


def held_out_probabilities(
    turns: Sequence[UserTurn], labels: Sequence[str], groups: Sequence[str], *, seed: int = 0
) -> tuple[list[str], np.ndarray]:
    """Return the sorted labels and, for each turn, p(label) from a head that was fitted without the turn's group."""
    names = sorted(set(labels))
    probabilities = np.zeros((len(turns), len(names)))
    for fit, test in folds(groups, seed=seed):
        head = Head.fit([turns[i] for i in fit], [labels[i] for i in fit])
        columns = [names.index(label) for label in head.labels]
        probabilities[np.ix_(test, columns)] = head.probabilities([turns[i] for i in test])
    return names, probabilities


def cross_validated(turns: Sequence[UserTurn], labels: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """Evaluate heads on turns from groups that the heads have not seen.

    Returns:
      A dictionary with these entries:

      - `turns`: the number of turns;
      - `macro_f1`: the F1 score, averaged over all labels;
      - `auc` (area under the ROC curve) and `average_precision`: how well the probability of `reattempt_with_feedback`
        separates turns with this label from all others;
      - `mining`: for each confidence threshold, the number of turns that later stages would use as feedback, and the
        precision (None if there are no such turns) and recall of this choice of turns.
    """
    names, probabilities = held_out_probabilities(turns, labels, groups)
    predicted = [names[best] for best in probabilities.argmax(axis=1)]
    is_feedback, confidence = np.array(labels) == FEEDBACK, probabilities[:, names.index(FEEDBACK)]
    mining = []
    for threshold in THRESHOLDS:
        mined = (np.array(predicted) == FEEDBACK) & (confidence >= threshold)
        right, count = int((mined & is_feedback).sum()), int(mined.sum())
        precision, recall = right / count if count else None, right / int(is_feedback.sum())
        mining.append(dict(threshold=threshold, mined=count, precision=precision, recall=recall))
    return dict(
        turns=len(turns),
        macro_f1=float(f1_score(labels, predicted, average='macro')),
        auc=float(roc_auc_score(is_feedback, confidence)),
        average_precision=float(average_precision_score(is_feedback, confidence)),
        mining=mining,
    )
