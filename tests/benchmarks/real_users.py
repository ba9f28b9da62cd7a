"""Do rewards that know their user predict real people better? MT-Bench's judges and RealHumanEval's programmers.

    python tests/benchmarks/real_users.py judges --model=DIR --file=votes.jsonl
    python tests/benchmarks/real_users.py programmers --model=DIR --file=chat.jsonl

Both commands compute the states of a frozen model once, and fit rewards over them (`rlhi_jax/state_rewards`) with the
default settings. Nothing is chosen on held-out data. Each adds its figures to `results/real_users.json`.

- judges: votes without ties, in five folds by question. `generic` has one reward for all judges, `low_rank` has the
  weights of each judge from votes on other questions, and `persona_head` reads personas made from votes on other
  questions: the judge's own, or another judge's. Baselines: the longer reply wins; the reply of the model that won more
  training votes wins. `disputed` are votes on two replies that another judge decided the other way round.
- programmers: does a programmer copy from a reply? Programmers are held out, in five folds, and their requests are
  taken in the order of time. `surface` knows the length and the code of reply and request, and how far the
  conversation is. `surface and own rate` also knows how often the programmer has copied so far. `generic` and `own` are
  low-rank rewards over surface features and states; `own` has learned the programmer's taste from all earlier requests.
  Figures are areas under the ROC curve.
"""

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_pipelines.core.record_files import stream_records
from data_pipelines.core.records import Record
from data_pipelines.sources import mt_bench
from data_pipelines.sources.rated import held_out
from rlhi_jax.cli.program import run, start
from rlhi_jax.config import base_config
from rlhi_jax.data.tree import Preference
from rlhi_jax.evaluation.conditions import other_personas
from rlhi_jax.evaluation.statistics import RESAMPLES, interval
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.state_rewards import low_rank, persona_head
from rlhi_jax.user_rewards import contexts_of, states_of

FOLDS = 5
COMPONENTS = 32  # principal components of the states of programmers' replies
RESULTS = Path(__file__).parent / 'results' / 'real_users.json'
EMPTY = dict(system='', persona='', weight=1.0)


def settings() -> ConfigDict:
    config = base_config()
    config.model.dtype = 'float32'
    config.rows.tokens, config.rows.scored, config.rows.pairs = 4096, 4096, 32
    return config


def fitted(config: ConfigDict, state_N2S: np.ndarray, users: Sequence[str]) -> low_rank.LowRank:
    chosen = config.low_rank
    tied_N = np.zeros(len(users), bool)
    common = dict(rank=chosen.rank, penalty=chosen.penalty, steps=chosen.steps, seed=config.seed)
    return low_rank.fit(state_N2S, users, tied_N, **common)[0]


# Judges


def votes_with_models(path: Path) -> list[Record]:
    """Return the votes without ties, with the models whose replies won and lost."""
    lines = path.read_text(encoding='utf-8').split('\n')
    votes = mt_bench.read_votes(path, Counter())
    for vote in votes:
        raw = json.loads(lines[int(vote['id'].rsplit(':', 1)[1]) - 1])
        loser = {'model_a': 'model_b', 'model_b': 'model_a'}[raw['winner']]
        vote['models'] = raw[raw['winner']], raw[loser]
    return votes


def preference_of(record: Record) -> Preference:
    turns = {
        name: tuple((turn['role'], turn['content']) for turn in record[name])
        for name in ('prompt', 'chosen', 'rejected')
    }
    return Preference(record['id'], **turns, user_id=record['user_id'], **EMPTY | dict(persona=record['persona']))


def disputed(votes: Sequence[Record]) -> set[str]:
    """Return the ids of votes on two replies that another judge decided the other way round."""

    def key(vote: Record, *sides: str) -> str:
        return json.dumps([vote['prompt'], *(vote[side] for side in sides)])

    judges = defaultdict(set)
    for vote in votes:
        judges[key(vote, 'chosen', 'rejected')].add(vote['judge'])
    return {vote['id'] for vote in votes if judges[key(vote, 'rejected', 'chosen')] - {vote['judge']}}


class Fold(NamedTuple):
    """Votes with personas made from training votes; `swapped` are the test votes with other judges' personas."""

    train: list[Preference]
    test: list[Preference]
    swapped: list[Preference]


def fold_of(votes: Sequence[Record], usable: set[str], fold: int, seed: int) -> Fold:
    sides = mt_bench.preferences(votes, folds=FOLDS, fold=fold)
    train, test = ([preference_of(record) for record in side if record['id'] in usable] for side in sides)
    others = other_personas(((vote.user_id, vote.persona) for vote in test), seed)
    return Fold(train, test, [dataclasses.replace(vote, persona=others.get(vote.user_id, '')) for vote in test])


def judges(config: ConfigDict, model_path: Path, path: Path) -> dict[str, Any]:
    model, votes = open_model(model_path), votes_with_models(path)
    by_id = {vote['id']: vote for vote in votes}
    kept, state_N2S = states_of(
        config, model, [preference_of(vote | dict(user_id=vote['judge'], persona='')) for vote in votes]
    )
    place = {preference.id: index for index, preference in enumerate(kept)}
    folds = [fold_of(votes, set(place), fold, config.seed) for fold in range(FOLDS)]
    parts = [part for fold in folds for part in fold]
    together = contexts_of(config, model, [vote for part in parts for vote in part])
    ends = np.cumsum([len(part) for part in parts])[:-1]
    contexts = list(zip(*(np.split(states, ends) for states in together), strict=True))
    gaps: dict[str, dict[str, float]] = defaultdict(dict)
    for number, fold in enumerate(folds):
        states, unseen = (state_N2S[[place[vote.id] for vote in part]] for part in (fold.train, fold.test))
        of_train, of_test, of_swapped = contexts[3 * number : 3 * number + 3]
        generic = fitted(config, states, [''] * len(fold.train))
        own = fitted(config, states, [vote.user_id for vote in fold.train])
        head, _ = persona_head.fit(*of_train, states, seed=config.seed, **config.persona_head.to_dict())
        of_judge = [own.rewards(pair, [vote.user_id])[:, 0] for pair, vote in zip(unseen, fold.test, strict=True)]
        rewards = {
            'generic': generic.rewards(unseen, [''])[..., 0],
            'low_rank': np.stack(of_judge),
            'persona_head own': head.rewards(*of_test, unseen),
            'persona_head other': head.rewards(*of_swapped, unseen),
        }
        wins = Counter(by_id[vote.id]['models'][0] for vote in fold.train)
        met = wins + Counter(by_id[vote.id]['models'][1] for vote in fold.train)
        for index, vote in enumerate(fold.test):
            for name, reward_N2 in rewards.items():
                gaps[name][vote.id] = float(reward_N2[index, 0] - reward_N2[index, 1])
            won, lost = (wins[model] / met[model] for model in by_id[vote.id]['models'])
            gaps['stronger model'][vote.id] = won - lost
            gaps['longer'][vote.id] = len(vote.chosen[-1][1]) - len(vote.rejected[-1][1])
    users = {name: by_id[name]['judge'] for name in place}
    some = disputed(votes) & set(place)
    found = {name: accuracies(gaps, users, which) for name, which in dict(all=set(place), disputed=some).items()}
    return dict(judges=len({*users.values()}), **found)


def accuracies(gaps: dict[str, dict[str, float]], users: dict[str, str], names: set[str]) -> dict[str, Any]:
    """Return the accuracy of each predictor, and what rewards gain by knowing the judge."""
    right = {name: {pair: 0.5 + 0.5 * float(np.sign(values[pair])) for pair in names} for name, values in gaps.items()}
    figures: dict[str, Any] = {name: interval(values, users) for name, values in right.items()}
    for better, worse in (('low_rank', 'generic'), ('persona_head own', 'persona_head other')):
        figures[f'{better} - {worse}'] = interval({p: right[better][p] - right[worse][p] for p in names}, users)
    return dict(votes=len(names), accuracy=figures)


# Programmers


def surface(call: Record) -> list[float]:
    """Return the length and the code of reply and request, and how far the conversation is."""
    response, request = call['response'], call['messages'][-1]['content']
    blocks = re.findall(r'```.*?```', response, re.DOTALL)
    code = sum(map(len, blocks))
    lengths = [math.log1p(len(response)), math.log1p(code), math.log1p(len(request))]
    return [*lengths, len(blocks), code / max(1, len(response)), math.log1p(len(call['messages'])), 'def ' in request]


def programmers(config: ConfigDict, model_path: Path, path: Path) -> dict[str, Any]:
    calls = [call for call in stream_records(path) if call['messages'] and call['response']]
    told = [
        Preference(
            str(number), (('user', call['messages'][-1]['content']),), (('assistant', call['response']),), (),
            user_id=call['user_id'], **EMPTY,
        )
        for number, call in enumerate(calls)
    ]  # fmt: skip
    kept, state_N2S = states_of(config, open_model(model_path), told)
    calls = [calls[int(preference.id)] for preference in kept]
    state_NS, surface_NF = state_N2S[:, 0], np.array([surface(call) for call in calls], float)
    copied_N = np.array([bool(call['copy_events']) for call in calls])
    user_N = np.array([call['user_id'] for call in calls])
    order = sorted(range(len(calls)), key=lambda n: (user_N[n], calls[n]['timestamp_s']))
    fold_N = np.array([next(f for f in range(FOLDS) if held_out(u, folds=FOLDS, fold=f)) for u in user_N])
    mean = copied_N.mean()
    rate_N = np.zeros(len(calls))
    history: dict[str, list[int]] = defaultdict(list)
    earlier: dict[int, list[int]] = {}
    for number in order:
        before = earlier[number] = list(history[user_N[number]])
        rate_N[number] = (copied_N[before].sum() + mean) / (len(before) + 1)
        history[user_N[number]].append(number)
    scores = {name: np.zeros(len(calls)) for name in ('surface', 'surface and own rate', 'generic', 'own')}
    for fold in range(FOLDS):
        test, train = np.flatnonzero(fold_N == fold), np.flatnonzero(fold_N != fold)
        for name, features in dict(surface=surface_NF, both=np.column_stack([surface_NF, rate_N])).items():
            regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[train], copied_N[train])
            name = 'surface' if name == 'surface' else 'surface and own rate'
            scores[name][test] = regression.decision_function(features[test])
        scaled = make_pipeline(StandardScaler(), PCA(COMPONENTS, random_state=0), StandardScaler()).fit(state_NS[train])
        plain = StandardScaler().fit(surface_NF[train])
        ones = np.ones((len(calls), 1))  # a reward for any reply, so that a taste includes how often a user copies
        feature_NS = np.column_stack([scaled.transform(state_NS), plain.transform(surface_NF), ones])
        # A copied reply is preferred to none, and none is preferred to a reply that was not copied.
        state_N2S = np.stack([feature_NS * copied_N[:, None], feature_NS * ~copied_N[:, None]], axis=1)
        rewards = fitted(config, state_N2S[train], user_N[train].tolist())
        for number in test:
            before = earlier[number]
            of_user = rewards.with_user(
                'held out', state_N2S[before], np.zeros(len(before), bool), config.low_rank.penalty
            )
            for name, user in (('generic', 'nobody'), ('own', 'held out')):
                scores[name][number] = of_user.rewards(feature_NS[number], [user])[0]
    pairs = (('own', 'generic'), ('own', 'surface'), ('own', 'surface and own rate'))
    return dict(
        requests=len(calls), copied=int(copied_N.sum()), users=len({*user_N}),
        auc=areas(scores, copied_N, user_N, pairs),
    )  # fmt: skip


def areas(
    scores: dict[str, np.ndarray], copied_N: np.ndarray, user_N: np.ndarray, pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """Return areas under the ROC curve and differences between them, with a bootstrap over users."""
    of_user = {user: np.flatnonzero(user_N == user) for user in sorted({*user_N})}
    rng, drawn = np.random.default_rng(0), defaultdict(list)

    def all_areas(index: np.ndarray) -> dict[str, float]:
        found = {name: float(roc_auc_score(copied_N[index], values[index])) for name, values in scores.items()}
        return found | {f'{better} - {worse}': found[better] - found[worse] for better, worse in pairs}

    users = list(of_user)
    for _ in range(RESAMPLES // 2):
        picked = rng.integers(len(users), size=len(users))
        for name, value in all_areas(np.concatenate([of_user[users[n]] for n in picked])).items():
            drawn[name].append(value)
    bounds = {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in drawn.items()}
    means = all_areas(np.arange(len(user_N)))
    return {name: dict(mean=means[name], low=bounds[name][0], high=bounds[name][1]) for name in means}


def main(command: str) -> None:
    measure = dict(judges=judges, programmers=programmers)[command]
    result = {command: measure(settings(), Path(flags.FLAGS.model), Path(flags.FLAGS.file))}
    stored = read_json(RESULTS, 'remove the file', fields=()) if RESULTS.exists() else {}
    write_json(RESULTS, stored | result)
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    flags.DEFINE_string('model', None, 'Folder of the frozen model.', required=True)
    flags.DEFINE_string('file', None, 'votes.jsonl or chat.jsonl.', required=True)
    COMMAND = start(commands=('judges', 'programmers'))
    run(lambda: main(COMMAND))
