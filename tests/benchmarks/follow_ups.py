"""Do follow-ups show what people think of replies? Heads against human labels, cross-validated over dialogues.

python tests/benchmarks/follow_ups.py --data=DIR    folder with conture/, followup_gold/; writes results/follow_ups.json

- ConTurE: is a reply liked or disliked, judged from the user's next turn alone, from the reply alone, and from both
  (the sum of the two heads' logits)? Area under the ROC curve, and paired differences.
- followup_gold: five types of reaction to an erroneous reply; macro-F1, against TF-IDF with the same regression.
- WildChat: how many of the turns that a head mines are feedback, by developers' labels in `tests/labels`. These cover
  100 turns that it mined and 100 drawn from all, shuffled and read twice before its judgements were seen. Other readers
  labelled its training turns, and each turn was judged by a head that saw no turn of its conversation's cluster. The
  confidence for mining was fixed on 100 other turns, read once.

Intervals are 95 % by a bootstrap over dialogues.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline

from data_pipelines.core.turns import conversation_of, turn_id
from data_pipelines.labelling.by_head import STRENGTH
from data_pipelines.labelling.cross_validation import FOLDS, held_out_probabilities
from data_pipelines.labelling.labels import FEEDBACK, UserTurn
from rlhi_jax.io.files import write_json

SEEDS, DRAWS = range(3), 2000
LABELS = Path(__file__).parents[1] / 'labels'


def mean_probabilities(turns: Sequence[UserTurn], labels: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """Held-out p(label), [turns, labels in order], over several ways to fold."""
    return np.mean([held_out_probabilities(turns, labels, groups, seed=seed)[1] for seed in SEEDS], axis=0)


def tfidf_probabilities(texts: Sequence[str], labels: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """The same from TF-IDF of words and pairs of words, without our code."""
    names, probabilities = sorted(set(labels)), np.zeros((len(SEEDS), len(texts), len(set(labels))))
    for seed in SEEDS:
        for fit, test in GroupKFold(FOLDS, shuffle=True, random_state=seed).split(texts, labels, groups):
            vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            model = make_pipeline(vectors, LogisticRegression(C=STRENGTH, max_iter=2000, class_weight='balanced'))
            model.fit([texts[i] for i in fit], [labels[i] for i in fit])
            columns = [names.index(label) for label in model.classes_]
            probabilities[seed][np.ix_(test, columns)] = model.predict_proba([texts[i] for i in test])
    return probabilities.mean(axis=0)


def with_interval(statistic: Callable[[np.ndarray], float], groups: Sequence[str]) -> dict[str, float]:
    """A statistic of all items, with the 2.5 and 97.5 % quantiles over draws of whole groups."""
    names, members = np.unique(groups, return_inverse=True)
    rows = [np.flatnonzero(members == group) for group in range(len(names))]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        drawn = np.concatenate([rows[group] for group in rng.integers(len(names), size=len(names))])
        draws.append(statistic(drawn))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return dict(value=float(statistic(np.arange(len(members)))), low=float(low), high=float(high))


def conture(path: Path) -> dict:
    turns, labels, groups = [], [], []
    for dialogue in json.loads(path.read_text()):
        exchanges = dialogue['turns']
        for number, (turn, following) in enumerate(zip(exchanges, exchanges[1:], strict=False)):
            if turn['overall impression'] in (0, 2):
                texts = [text.split(':', 1)[1].strip() for text in (turn['user'], turn['chatbot'], following['user'])]
                turns.append(UserTurn(turn_id(dialogue['dialog_id'], 2 * number + 2), *texts))
                labels.append('like' if turn['overall impression'] else 'dislike')
                groups.append(str(dialogue['dialog_id']))
    views = dict(
        follow_up_alone=[UserTurn(turn.id, '', '', turn.text) for turn in turns],
        reply_alone=[UserTurn(turn.id, '', '', turn.reply) for turn in turns],
    )
    probabilities = {name: mean_probabilities(view, labels, groups) for name, view in views.items()}
    disliked = np.array(labels) == 'dislike'
    logits = {name: np.log(p[:, 0]) - np.log(p[:, 1]) for name, p in probabilities.items()}
    logits['both'] = logits['follow_up_alone'] + logits['reply_alone']

    def auc(name: str, drawn: np.ndarray) -> float:
        return roc_auc_score(disliked[drawn], logits[name][drawn]) if len(set(disliked[drawn])) == 2 else float('nan')

    aucs = {name: with_interval(lambda drawn, name=name: auc(name, drawn), groups) for name in logits}
    pairs = [('both', 'reply_alone'), ('both', 'follow_up_alone'), ('reply_alone', 'follow_up_alone')]
    differences = {
        f'{one} - {other}': with_interval(lambda d, one=one, other=other: auc(one, d) - auc(other, d), groups)
        for one, other in pairs
    }
    return dict(
        turns=len(turns), dialogues=len(set(groups)), disliked=int(disliked.sum()), auc=aucs, difference=differences
    )


def followup_gold(path: Path) -> dict:
    items = json.loads(path.read_text())
    turns = []
    for n, item in enumerate(items):
        request = item['context'].rsplit('<user>', 1)[-1].strip()
        turns.append(UserTurn(turn_id(str(n), 2), request, item['error_text'].strip(), item['user_reaction']))
    labels, groups = [item['user_reaction_type'] for item in items], [item['id_original'] for item in items]
    texts, names = [turn.text for turn in turns], np.array(sorted(set(labels)))
    predicted = dict(
        head=names[mean_probabilities(turns, labels, groups).argmax(axis=1)],
        tfidf=names[tfidf_probabilities(texts, labels, groups).argmax(axis=1)],
    )

    def score(name: str, drawn: np.ndarray) -> float:
        return f1_score(np.array(labels)[drawn], predicted[name][drawn], labels=names, average='macro', zero_division=0)

    scores = {name: with_interval(lambda drawn, name=name: score(name, drawn), groups) for name in predicted}
    scores['head - tfidf'] = with_interval(lambda drawn: score('head', drawn) - score('tfidf', drawn), groups)
    return dict(turns=len(turns), dialogues=len(set(groups)), macro_f1=scores)


def developer_labels(path: Path) -> dict:
    """Precision of mining, share of feedback among all turns, and agreement of the two passes.

    Intervals are by a bootstrap over conversations.
    """
    records = [json.loads(line) for line in path.read_text().splitlines()]
    passes = ('first_pass', 'second_pass')
    results: dict = {}
    for drawn in ('mined', 'random'):
        sample = [record for record in records if record[drawn]]
        for each in passes:
            right = np.array([record[each] == FEEDBACK for record in sample])
            conversations = [conversation_of(record['id']) for record in sample]
            share = with_interval(lambda turns, right=right: right[turns].mean(), conversations)
            results[f'{drawn}, {each}'] = dict(share, turns=len(sample), conversations=len(set(conversations)))
    first, second = ([record[each] for record in records] for each in passes)
    results['kappa'] = float(cohen_kappa_score(first, second))
    is_feedback = ([label == FEEDBACK for label in labels] for labels in (first, second))
    results['kappa_feedback'] = float(cohen_kappa_score(*is_feedback))
    return results


def by_threshold(path: Path) -> dict:
    """For each confidence: how many of the turns that fixed the threshold are mined, and the share of feedback."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    results = {}
    for threshold in (0.7, 0.8, 0.9):  # all of them were mined at 0.7
        right = [record['label'] == FEEDBACK for record in records if record['confidence'] >= threshold]
        results[f'{threshold}'] = dict(mined=len(right), share=float(np.mean(right)))
    return results


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', required=True, type=Path)
    args = parser.parse_args()
    results = dict(
        conture=conture(args.data / 'conture' / 'data.json'),
        followup_gold=followup_gold(args.data / 'followup_gold' / 'erroneous_adjudicated.json'),
        developer_labels=developer_labels(LABELS / 'follow_ups_blind.jsonl'),
        threshold=by_threshold(LABELS / 'follow_ups_threshold.jsonl'),
    )
    write_json(Path(__file__).parent / 'results' / 'follow_ups.json', results)
    print(json.dumps(results, indent=2))


if __name__ == '__main__':
    main()
