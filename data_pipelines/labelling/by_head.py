"""Labels follow-up turns with a small trained head instead of a teacher.

The head is a logistic regression on two kinds of features: a turn's hashed text (words, characters and first words),
and its relations to the request and the reply before it. Because the text is hashed, a head contains no user text. A
single CPU core labels three thousand turns per second.
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

from data_pipelines.core.passes import in_blocks
from data_pipelines.core.turns import index_of
from data_pipelines.labelling.head_folder import REMEDY, head_manifest
from data_pipelines.labelling.labels import Judgement, UserTurn, judge, opening, sentences
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest, write_json

STRENGTH = 3.0  # inverse regularization strength
RELATION_WEIGHT = 0.1  # standard deviation of each relation after scaling; each kind of text feature has length 1
BEGINNING = 4  # number of words in a turn's beginning
WIDTH = 2**17  # number of hash buckets for each kind of text feature
BLOCK = 2000  # number of turns whose features are in memory at the same time
HEAD = 'head.safetensors'


@functools.cache
def _hashers() -> tuple[HashingVectorizer, ...]:
    """Return hashers for words and word pairs, for runs of 2 to 4 characters within a word, and for the first words."""
    common = dict(n_features=WIDTH, alternate_sign=False, norm=None)
    return (
        HashingVectorizer(ngram_range=(1, 2), token_pattern=r'\w+', **common),
        HashingVectorizer(analyzer='char_wb', ngram_range=(2, 4), **common),
        HashingVectorizer(analyzer=_beginnings, **common),
    )


def _beginnings(text: str) -> list[str]:
    """Return the first word of a text, its first two words, and so on up to its first BEGINNING words.

    How a turn begins says more about its label than which words it contains.

    >>> _beginnings('No, make it short, please.')
    ['no', 'no make', 'no make it', 'no make it short']
    """
    words = re.findall(r'\w+', text.lower())[:BEGINNING]
    return [' '.join(words[:end]) for end in range(1, len(words) + 1)]


def hashed(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Return the counts of the hashed words, character runs and beginnings in each text: shape [texts, 3 * WIDTH]."""
    return scipy.sparse.hstack([hasher.transform(texts) for hasher in _hashers()], format='csr')


def relations(turn: UserTurn) -> list[float]:
    """Return features that describe how a turn relates to the request and the reply before it."""
    words, of_request, of_reply = (_words(text) for text in (turn.text, turn.request, turn.reply))
    return [
        *(np.log1p(len(text)) for text in (turn.text, turn.request, turn.reply)),
        len(words & of_request) / (len(words) + 1),
        len(words & of_reply) / (len(words) + 1),
        len(words & of_request) / (len(words | of_request) + 1),
        index_of(turn.id) / 10,
        float('```' in turn.reply),
        float(bool(re.search(r'apolog|sorry', turn.reply[:200], re.IGNORECASE))),
        float('?' in turn.text),
    ]


def _words(text: str) -> set[str]:
    return set(re.findall(r'\w+', text[:2000].lower()))


class Head:
    """A logistic regression that computes p(label) for a turn from its hashed text and its relations to earlier turns.

    Each kind of text feature is weighted by inverse document frequency (idf) and then scaled to unit length.

    Attributes:
      labels: the labels that the head distinguishes, in the order of the columns of `probabilities`.
    """

    def __init__(self, labels: Sequence[str], weights: dict[str, np.ndarray]):
        self.labels, self._weights = tuple(labels), weights
        self._transforms = [_transform(idf) for idf in np.split(weights['idf'], len(_hashers()))]

    @classmethod
    def fit(cls, turns: Sequence[UserTurn], labels: Sequence[str]) -> 'Head':
        """Fit a head that distinguishes the labels of these turns. There must be at least two different labels."""
        counts, related = hashed([opening(turn) for turn in turns]), np.array([relations(turn) for turn in turns])
        idf = np.concatenate([TfidfTransformer().fit(part).idf_ for part in _by_kind(counts)])
        weights = dict(idf=idf, mean=related.mean(0), scale=related.std(0) + 1e-6)
        features = cls((), weights)._features(counts, related)
        seen = np.flatnonzero(features.getnnz(axis=0) > 1)  # a feature of only one turn does not generalize
        model = LogisticRegression(C=STRENGTH, max_iter=2000, class_weight='balanced').fit(features[:, seen], labels)
        coef, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn then stores only the second label's weights relative to the first
            coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
        weights |= dict(coef=np.zeros((len(bias), features.shape[1])), bias=bias)
        weights['coef'][:, seen] = coef
        return cls(model.classes_.tolist(), {name: np.asarray(value, np.float32) for name, value in weights.items()})

    @classmethod
    def load(cls, folder: Path) -> 'Head':
        """Read a head that `save` wrote.

        Raises:
          UserError: the folder does not contain a head, or the head is damaged or was made by a different version.
        """
        manifest = head_manifest(folder)
        if not (folder / HEAD).is_file() or file_digest(folder / HEAD) != manifest['weights']:
            raise UserError(f'{folder / HEAD} is missing or corrupt: {REMEDY}')
        weights = load_file(folder / HEAD)
        if len(weights['idf']) != WIDTH * len(_hashers()):
            raise UserError(f'{folder} contains a head with different input features, from another version: {REMEDY}')
        return cls(manifest['labels'], weights)

    def save(self, folder: Path, **about: Any) -> None:
        """Write the head to a folder, with a manifest that also contains the fields in `about`."""
        save_file(self._weights, folder / HEAD)
        weights = file_digest(folder / HEAD)
        write_json(folder / 'manifest.json', dict(about, stage='head_labels', labels=self.labels, weights=weights))

    def _features(self, counts: scipy.sparse.csr_matrix, related: np.ndarray) -> scipy.sparse.csr_matrix:
        words = [each.transform(part) for each, part in zip(self._transforms, _by_kind(counts), strict=True)]
        scaled = RELATION_WEIGHT * (related - self._weights['mean']) / self._weights['scale']
        return scipy.sparse.hstack([*words, scipy.sparse.csr_matrix(scaled)], format='csr')

    def probabilities(self, turns: Sequence[UserTurn]) -> np.ndarray:
        """Return p(label) for each turn, with shape [turns, labels]."""
        return self._probabilities([opening(turn) for turn in turns], np.array(list(map(relations, turns))))

    def _probabilities(self, texts: Sequence[str], related: np.ndarray) -> np.ndarray:
        """Return p(label) for each text, with shape [texts, labels].

        Args:
          texts: openings of turns, or sentences from openings.
          related: for each text, the result of `relations` for the turn that the text comes from.
        """
        features = self._features(hashed(texts), related)
        return softmax(features @ self._weights['coef'].T + self._weights['bias'], axis=1)

    def judge(self, turns: Sequence[UserTurn]) -> dict[str, Judgement]:
        """Return a judgement of each turn, keyed by turn id."""
        judgements = {}
        for block in in_blocks(turns, BLOCK):
            related, openings = np.array(list(map(relations, block))), [opening(turn) for turn in block]
            parts = [(row, sentence) for row, text in enumerate(openings) for sentence in sentences(text)]
            rows, texts = zip(*parts, strict=True)
            by_sentence: list[dict[str, np.ndarray]] = [{} for _ in block]
            for (row, sentence), weights in zip(parts, self._probabilities(texts, related[list(rows)]), strict=True):
                by_sentence[row][sentence] = weights
            rows_of_weights = self._probabilities(openings, related)
            for turn, weights, of_sentences in zip(block, rows_of_weights, by_sentence, strict=True):
                best = int(weights.argmax())
                of_best = {sentence: weight[best] for sentence, weight in of_sentences.items()}
                judgements[turn.id] = judge(turn, self.labels[best], float(weights[best]), of_best)
        return judgements


def _transform(idf: np.ndarray) -> TfidfTransformer:
    transform = TfidfTransformer(sublinear_tf=True)
    transform.idf_ = idf
    return transform


def _by_kind(counts: scipy.sparse.csr_matrix) -> list[scipy.sparse.csr_matrix]:
    width = counts.shape[1] // len(_hashers())
    return [counts[:, start : start + width] for start in range(0, counts.shape[1], width)]
