"""Tests preference pairs for artefacts: whether a classifier that sees only the replies can tell which is chosen."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from data_pipelines.text.words import words

MIN_PAIRS = 20  # fewer pairs give no reliable result
FOLDS = 5
_HASHER = HashingVectorizer(n_features=2**16, analyzer=words, alternate_sign=False, norm=None)


def _shape(replies: Sequence[str]) -> np.ndarray:
    """Return the length and layout of each reply: log(1 + count) of characters, words, line breaks and list markers."""
    counts = [[len(r), len(r.split()), r.count('\n'), sum(r.count(mark) for mark in '*-#1')] for r in replies]
    return np.log1p(np.array(counts, float))


def reply_only_auc(pairs: Sequence[tuple[str, str]], groups: Sequence[str], *, seed: int) -> float | None:
    """Return the cross-validated area under the ROC curve of a classifier that tells chosen replies from rejected ones.

    The classifier is a logistic regression on the words, length and layout of a reply.

    Args:
      pairs: (chosen, rejected) texts.
      groups: the user (or conversation) of each pair; all pairs in a group are in the same fold.
      seed: the seed for shuffling the groups.

    Returns:
      The area under the curve, which is about 0.5 if the replies alone do not show which one is chosen. If there are
      fewer than 20 pairs or fewer than 5 groups, the result is None.
    """
    if len(pairs) < MIN_PAIRS or len(set(groups)) < FOLDS:
        return None
    texts = [text for pair in pairs for text in pair]
    labels = np.tile([1, 0], len(pairs))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores = np.zeros(len(texts))
    for fit, test in folds.split(texts, labels, np.repeat(groups, 2)):
        probe = make_pipeline(
            FeatureUnion(
                [
                    ('words', make_pipeline(_HASHER, TfidfTransformer(sublinear_tf=True))),
                    ('shape', make_pipeline(FunctionTransformer(_shape), StandardScaler())),
                ]
            ),
            LogisticRegression(max_iter=1000),
        )
        probe.fit([texts[i] for i in fit], labels[fit])
        scores[test] = probe.decision_function([texts[i] for i in test])
    return float(roc_auc_score(labels, scores))
