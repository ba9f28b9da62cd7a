"""Labels of follow-ups by a small trained head: three thousand turns a second on one core, no teacher.

The head is a logistic regression on hashed words and characters of the turn, on its first words as such, and on how it
relates to request and reply. Words are hashed, so a head holds no text of its users.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from data_pipelines.labelling.labels import Judgement, Turn, judge, opening, sentences
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest, read_json, write_json

FOLDS = 5

STRENGTH = 3.0  # inverse of the penalty

SHAPE_WEIGHT = 0.1  # of a standard deviation of a relation, against words of unit length

BEGINNING = 4  # words

WIDTH = 2**17  # of each kind of hash

BLOCK = 2000  # turns whose features exist at once

HEAD = 'head.safetensors'

_REMEDY = 'train a head with `python -m data_pipelines.head_labels`'


@functools.cache
def _hashers() -> tuple[HashingVectorizer, ...]:
    """Of words and pairs of words, of 2 to 4 characters inside a word, and of the first words."""
    common = dict(n_features=WIDTH, alternate_sign=False, norm=None)
    return (
        HashingVectorizer(ngram_range=(1, 2), token_pattern=r'\w+', **common),
        HashingVectorizer(analyzer='char_wb', ngram_range=(2, 4), **common),
        HashingVectorizer(analyzer=_beginnings, **common),
    )


def _beginnings(text: str) -> list[str]:
    """The first word, the first two, and so on: how a turn begins tells more than that its words occur.

    >>> _beginnings('No, make it short, please.')
    ['no', 'no make', 'no make it', 'no make it short']
    """
    words = re.findall(r'\w+', text.lower())[:BEGINNING]
    return [' '.join(words[:end]) for end in range(1, len(words) + 1)]


def hashed(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Counts of words, characters and beginnings, [texts, 3 * WIDTH]."""
    return scipy.sparse.hstack([hasher.transform(texts) for hasher in _hashers()], format='csr')


def relations(turn: Turn) -> list[float]:
    """How a turn relates to the request and the reply before it."""
    said, asked, answered = (_words(text) for text in (turn.text, turn.request, turn.reply))
    return [
        *(np.log1p(len(text)) for text in (turn.text, turn.request, turn.reply)),
        len(said & asked) / (len(said) + 1),
        len(said & answered) / (len(said) + 1),
        len(said & asked) / (len(said | asked) + 1),
        int(turn.id.rsplit('/', 1)[1]) / 10,
        float('```' in turn.reply),
        float(bool(re.search(r'apolog|sorry', turn.reply[:200], re.IGNORECASE))),
        float('?' in turn.text),
    ]


def _words(text: str) -> set[str]:
    return set(re.findall(r'\w+', text[:2000].lower()))


class Head:
    """Probabilities of labels, from weights on hashed text (idf-weighted, unit length by kind) and on relations.

    Attributes:
      labels: what it tells apart, in the order of its probabilities.
    """

    def __init__(self, labels: Sequence[str], weights: dict[str, np.ndarray]):
        self.labels, self._weights = tuple(labels), weights
        self._transforms = [_transform(idf) for idf in np.split(weights['idf'], len(_hashers()))]

    @classmethod
    def fit(cls, turns: Sequence[Turn], labels: Sequence[str]) -> 'Head':
        """A head for the labels that occur, of which there must be at least two."""
        counts, told = hashed([opening(turn) for turn in turns]), np.array([relations(turn) for turn in turns])
        idf = np.concatenate([TfidfTransformer().fit(part).idf_ for part in _by_kind(counts)])
        weights = dict(idf=idf, mean=told.mean(0), scale=told.std(0) + 1e-6)
        features = cls((), weights)._features(counts, told)
        seen = np.flatnonzero(features.getnnz(axis=0) > 1)  # what one turn alone says tells nothing of others
        model = LogisticRegression(C=STRENGTH, max_iter=2000, class_weight='balanced').fit(features[:, seen], labels)
        coef, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # then there are only the weights of the second against the first
            coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
        weights |= dict(coef=np.zeros((len(bias), features.shape[1])), bias=bias)
        weights['coef'][:, seen] = coef
        return cls(model.classes_.tolist(), {name: np.asarray(value, np.float32) for name, value in weights.items()})

    @classmethod
    def load(cls, folder: Path) -> 'Head':
        """Read what `save` wrote.

        Raises:
          UserError: the folder holds no head, or not all of it.
        """
        manifest = _manifest(folder)
        if not (folder / HEAD).is_file() or file_digest(folder / HEAD) != manifest['weights']:
            raise UserError(f'{folder / HEAD} is missing or corrupt: {_REMEDY}')
        weights = load_file(folder / HEAD)
        if len(weights['idf']) != WIDTH * len(_hashers()):
            raise UserError(f'{folder} holds a head that reads turns otherwise than this version does: {_REMEDY}')
        return cls(manifest['labels'], weights)

    def save(self, folder: Path, **about: Any) -> None:
        save_file(self._weights, folder / HEAD)
        weights = file_digest(folder / HEAD)
        write_json(folder / 'manifest.json', dict(about, stage='head_labels', labels=self.labels, weights=weights))

    def _features(self, counts: scipy.sparse.csr_matrix, told: np.ndarray) -> scipy.sparse.csr_matrix:
        words = [each.transform(part) for each, part in zip(self._transforms, _by_kind(counts), strict=True)]
        shape = SHAPE_WEIGHT * (told - self._weights['mean']) / self._weights['scale']
        return scipy.sparse.hstack([*words, scipy.sparse.csr_matrix(shape)], format='csr')

    def probabilities(self, turns: Sequence[Turn]) -> np.ndarray:
        """p(label) of each turn, [turns, labels]."""
        return self._probabilities([opening(turn) for turn in turns], np.array(list(map(relations, turns))))

    def _probabilities(self, texts: Sequence[str], told: np.ndarray) -> np.ndarray:
        """p(label) of texts, each said by a turn of such relations."""
        return softmax(self._features(hashed(texts), told) @ self._weights['coef'].T + self._weights['bias'], axis=1)

    def judge(self, turns: Sequence[Turn]) -> dict[str, Judgement]:
        """Each turn's judgement by its id."""
        found = {}
        for start in range(0, len(turns), BLOCK):
            block = turns[start : start + BLOCK]
            told, openings = np.array(list(map(relations, block))), [opening(turn) for turn in block]
            parts = [(number, sentence) for number, text in enumerate(openings) for sentence in sentences(text)]
            numbers, texts = zip(*parts, strict=True)
            weights: list[dict[str, np.ndarray]] = [{} for _ in block]
            for (number, sentence), own in zip(parts, self._probabilities(texts, told[list(numbers)]), strict=True):
                weights[number][sentence] = own
            for turn, own, by_sentence in zip(block, self._probabilities(openings, told), weights, strict=True):
                best = int(own.argmax())
                of_best = {sentence: weight[best] for sentence, weight in by_sentence.items()}
                found[turn.id] = judge(turn, self.labels[best], float(own[best]), of_best)
        return found


def _manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / 'manifest.json', _REMEDY, fields=('labels', 'weights'))


def head_digest(folder: Path) -> str:
    """Identifies a head.

    Raises:
      UserError: the folder holds none.
    """
    _manifest(folder)
    return file_digest(folder / 'manifest.json')


def _transform(idf: np.ndarray) -> TfidfTransformer:
    transform = TfidfTransformer(sublinear_tf=True)
    transform.idf_ = idf
    return transform


def _by_kind(counts: scipy.sparse.csr_matrix) -> list[scipy.sparse.csr_matrix]:
    width = counts.shape[1] // len(_hashers())
    return [counts[:, start : start + width] for start in range(0, counts.shape[1], width)]


def folds(groups: Sequence[str], *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """FOLDS times the places of turns to fit a head on, and of those of other groups to test it on.

    Args:
      groups: that of each turn, of which there are at least FOLDS.
    """
    return list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(groups, groups=groups))


def held_out_probabilities(
    turns: Sequence[Turn], labels: Sequence[str], groups: Sequence[str], *, seed: int = 0
) -> tuple[list[str], np.ndarray]:
    """The labels that occur, sorted, and p(label) of each turn by a head that saw no turn of its group."""
    names = sorted(set(labels))
    found = np.zeros((len(turns), len(names)))
    for fit, test in folds(groups, seed=seed):
        head = Head.fit([turns[i] for i in fit], [labels[i] for i in fit])
        found[np.ix_(test, [names.index(label) for label in head.labels])] = head.probabilities(
            [turns[i] for i in test]
        )
    return names, found
