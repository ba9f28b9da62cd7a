"""Labels of follow-ups by a small trained head: three thousand turns a second on one core, no teacher.

    python -m data_pipelines.head_labels --config=configs/NAME.py --labels=LABELS.jsonl --to=DIR

Trains a head for `config.follow_ups.labeller='head'`. Labels are JSON lines of `id` (CONVERSATION/PLACE) and `label` of
turns of `config.data.conversations`: made by hand, or records.jsonl of a teacher's `follow_ups`. The head is a logistic
regression on hashed words and characters of the turn, on its first words as such, and on how it relates to request and
reply. Words are hashed, so a head holds no text of its users. It is judged by cross-validation over clusters of
conversations first, and says at which confidence `reattempt_with_feedback` can be mined with which precision.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from absl import flags
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from data_pipelines.labels import FEEDBACK, LABELS, Judgement, Turn, judge, opening, sentences, turns_after_replies
from data_pipelines.stage import read_records
from rlhi_jax import errors
from rlhi_jax.config import define_config_flag, load_config
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest, new_folder, read_json, write_json

FOLDS = 5
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
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
    errors.require_flags('labels', 'to')
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
    errors.run(main)
