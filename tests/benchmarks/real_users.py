"""Do rewards that know their user predict real people better? MT-Bench's judges and RealHumanEval's programmers.

    python tests/benchmarks/real_users.py judges --model=DIR --file=votes.jsonl
    python tests/benchmarks/real_users.py programmers --model=DIR --file=chat.jsonl

Both commands compute the states of a frozen model once, and fit rewards over them (`rlhi_jax/state_rewards`) with the
default settings. Nothing is chosen on held-out data. Each adds its figures to `results/real_users.json`.

- judges: votes without ties, in five folds by question. `generic` has one reward for all judges, and `low_rank` has the
  weights of each judge from votes on other questions. `persona_head` reads a persona made from votes on half of the
  other questions: the judge's own, or another judge's. Baselines: the longer reply wins; the reply of the model that
  won more training votes wins. `disputed` are votes on two replies that another judge decided the other way round.
- programmers: does a programmer copy from a reply? Programmers are held out, in five folds, and their requests are
  taken in the order of time. `surface` knows the length and the code of reply and request, and how far the
  conversation is; `own rate` is how often the programmer copied from replies to earlier requests. (The file does not
  say when, so this may include copies that were made after the current request.) `low_rank` reads the same as `surface
  and states`, and has learned the programmer's taste from all earlier requests. Figures are areas under the ROC curve.
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
from rlhi_jax.scoring.gaps import text_states
from rlhi_jax.state_rewards import low_rank, persona_head
from rlhi_jax.user_rewards import states_of

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


def preference_of(vote: Record, persona: str) -> Preference:
    turns = {
        name: tuple((turn['role'], turn['content']) for turn in vote[name]) for name in ('prompt', 'chosen', 'rejected')
    }
    return Preference(vote['id'], **turns, user_id=vote['judge'], **EMPTY | dict(persona=persona))


def disputed(votes: Sequence[Record]) -> set[str]:
    """Return the ids of votes on two replies that another judge decided the other way round."""

    def key(vote: Record, *sides: str) -> str:
        return json.dumps([vote['prompt'], *(vote[side] for side in sides)])

    judges = defaultdict(set)
    for vote in votes:
        judges[key(vote, 'chosen', 'rejected')].add(vote['judge'])
    return {vote['id'] for vote in votes if judges[key(vote, 'rejected', 'chosen')] - {vote['judge']}}


class Fold(NamedTuple):
    """Votes with personas of their judges. `swapped` are the test votes with other judges' personas, '' if none."""

    train: list[Preference]
    test: list[Preference]
    swapped: list[Preference]


def fold_of(votes: Sequence[Record], fold: int, seed: int) -> Fold:
    """Split votes by question. Votes on half of the training questions make the personas, and are not trained on.

    A persona made from the votes that a head is trained on would give their judgements away.
    """
    remembered, train, test = [], [], []
    for vote in votes:
        if held_out(vote['question'], folds=FOLDS, fold=fold):
            test.append(vote)
        else:
            (remembered if held_out(['persona', vote['question']], folds=2, fold=0) else train).append(vote)
    of_judge = defaultdict(list)
    for vote in remembered:
        of_judge[vote['judge']].append(vote | dict(leanings=mt_bench.leanings(vote)))
    personas = {judge: mt_bench.persona(theirs) for judge, theirs in of_judge.items()}
    sides = [[preference_of(vote, personas.get(vote['judge'], '')) for vote in side] for side in (train, test)]
    others = other_personas(((vote.user_id, vote.persona) for vote in sides[1]), seed)
    return Fold(*sides, [dataclasses.replace(vote, persona=others.get(vote.user_id, '')) for vote in sides[1]])


def judges(config: ConfigDict, model_path: Path, path: Path) -> dict[str, Any]:
    model, everything = open_model(model_path), votes_with_models(path)
    kept, state_N2S = states_of(config, model, [preference_of(vote, '') for vote in everything])
    place = {preference.id: index for index, preference in enumerate(kept)}
    by_id = {vote['id']: vote for vote in everything if vote['id'] in place}
    folds = [fold_of(list(by_id.values()), fold, config.seed) for fold in range(FOLDS)]
    said = [vote for fold in folds for part in fold for vote in part]
    text_of = text_states(config, model, [text for vote in said for text in (vote.persona, vote.prompt[-1][1])])
    unknown_S = np.full_like(state_N2S[0, 0], np.nan)

    def read_by_head(votes: Sequence[Preference]) -> list[np.ndarray]:
        texts = [[vote.persona for vote in votes], [vote.prompt[-1][1] for vote in votes]]
        return [np.stack([text_of.get(text, unknown_S) for text in column]) for column in texts]

    gaps: dict[str, dict[str, float]] = defaultdict(dict)
    for fold in folds:
        unseen = {vote.id for vote in fold.test}
        seen = [vote for vote in kept if vote.id not in unseen]
        seen_N2S, head_N2S, test_N2S = (
            state_N2S[[place[vote.id] for vote in part]] for part in (seen, fold.train, fold.test)
        )
        generic = fitted(config, seen_N2S, [''] * len(seen))
        own = fitted(config, seen_N2S, [vote.user_id for vote in seen])
        head, _ = persona_head.fit(
            *read_by_head(fold.train), head_N2S, seed=config.seed, **config.persona_head.to_dict()
        )
        of_judge = [own.rewards(pair, [vote.user_id])[:, 0] for pair, vote in zip(test_N2S, fold.test, strict=True)]
        rewards = {
            'generic': generic.rewards(test_N2S, [''])[..., 0],
            'low_rank': np.stack(of_judge),
            'persona_head own': head.rewards(*read_by_head(fold.test), test_N2S),
            'persona_head other': head.rewards(*read_by_head(fold.swapped), test_N2S),
        }
        wins = Counter(by_id[vote.id]['models'][0] for vote in seen)
        met = wins + Counter(by_id[vote.id]['models'][1] for vote in seen)
        for index, (vote, swapped) in enumerate(zip(fold.test, fold.swapped, strict=True)):
            for name, reward_N2 in rewards.items():
                if 'head' not in name or (vote.persona and swapped.persona):
                    gaps[name][vote.id] = float(reward_N2[index, 0] - reward_N2[index, 1])
            won, lost = (wins[model] / met[model] for model in by_id[vote.id]['models'])
            gaps['stronger model'][vote.id] = won - lost
            gaps['longer'][vote.id] = len(vote.chosen[-1][1]) - len(vote.rejected[-1][1])
    parts = dict(all=set(by_id), disputed=disputed(list(by_id.values())))
    return dict(
        judges=len({vote['judge'] for vote in by_id.values()}),
        **{name: accuracies(gaps, by_id, names) for name, names in parts.items()},
    )


def accuracies(gaps: dict[str, dict[str, float]], by_id: dict[str, Record], names: set[str]) -> dict[str, Any]:
    """Return the accuracy of each predictor, and what rewards gain by knowing the judge.

    Votes depend on each other through their judge and through their question, so there are two kinds of intervals.
    """
    right = {
        name: {pair: 0.5 + 0.5 * float(np.sign(value)) for pair, value in values.items() if pair in names}
        for name, values in gaps.items()
    }
    for better, worse in (('low_rank', 'generic'), ('persona_head own', 'persona_head other')):
        right[f'{better} - {worse}'] = {
            pair: value - right[worse][pair] for pair, value in right[better].items() if pair in right[worse]
        }
    return {
        name: dict(votes=len(values))
        | {
            f'by_{field}': interval(values, {pair: str(by_id[pair][field]) for pair in values})
            for field in ('judge', 'question')
        }
        for name, values in right.items()
    }


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
    fold_N = np.array([next(f for f in range(FOLDS) if held_out(u, folds=FOLDS, fold=f)) for u in user_N])
    earlier = earlier_calls(calls)
    scores: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(calls)))
    for fold in range(FOLDS):
        test, train = np.flatnonzero(fold_N == fold), np.flatnonzero(fold_N != fold)
        mean = copied_N[train].mean()
        rate_N1 = np.array([[(copied_N[before].sum() + mean) / (len(before) + 1)] for before in earlier])
        scaled = make_pipeline(StandardScaler(), PCA(COMPONENTS, random_state=0), StandardScaler()).fit(state_NS[train])
        both_NS = np.column_stack([scaled.transform(state_NS), surface_NF])
        features = {
            'surface': surface_NF,
            'surface and own rate': np.column_stack([surface_NF, rate_N1]),
            'surface and states': both_NS,
            'surface, states and own rate': np.column_stack([both_NS, rate_N1]),
        }
        for name, values in features.items():
            regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(values[train], copied_N[train])
            scores[name][test] = regression.decision_function(values[test])
        # A copied reply is preferred to none, and none is preferred to a reply that was not copied. The last feature is
        # a reward for any reply, so that a taste includes how often a user copies.
        plain = StandardScaler().fit(both_NS[train])
        feature_NS = np.column_stack([plain.transform(both_NS), np.ones(len(calls))])
        state_N2S = np.stack([feature_NS * copied_N[:, None], feature_NS * ~copied_N[:, None]], axis=1)
        rewards = fitted(config, state_N2S[train], user_N[train].tolist())
        for number in test:
            before = earlier[number]
            no_ties = np.zeros(len(before), bool)
            of_user = rewards.with_user('new', state_N2S[before], no_ties, config.low_rank.penalty)
            scores['low_rank'][number] = of_user.rewards(feature_NS[number], ['new'])[0]
    auc = areas(dict(scores), copied_N, user_N, fold_N)
    return dict(requests=len(calls), copied=int(copied_N.sum()), users=len({*user_N}), auc=auc)


def earlier_calls(calls: Sequence[Record]) -> list[list[int]]:
    """Return the places of the calls that the user of each call made before it."""
    earlier: list[list[int]] = [[] for _ in calls]
    history: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(calls)), key=lambda number: calls[number]['timestamp_s']):
        earlier[number] = list(history[calls[number]['user_id']])
        history[calls[number]['user_id']].append(number)
    return earlier


def areas(
    scores: dict[str, np.ndarray], copied_N: np.ndarray, user_N: np.ndarray, fold_N: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return areas under the ROC curve, and what knowing the user adds, with a bootstrap over users.

    Scores of different folds come from different models, so only replies of the same fold are compared.
    """
    of_user = [np.flatnonzero(user_N == user) for user in sorted({*user_N})]
    rng, drawn = np.random.default_rng(0), defaultdict(list)

    def all_areas(index: np.ndarray) -> dict[str, float]:
        found = {}
        for name, values in scores.items():
            right = comparisons = 0.0
            for fold in range(FOLDS):
                of_fold = index[fold_N[index] == fold]
                copied, others = values[of_fold[copied_N[of_fold]]], values[of_fold[~copied_N[of_fold]]]
                right += (copied[:, None] > others).sum() + (copied[:, None] == others).sum() / 2
                comparisons += copied.size * others.size
            found[name] = right / comparisons
        for name in ('surface, states and own rate', 'low_rank'):
            found |= {f'{name} - {base}': found[name] - found[base] for base in scores if base != name}
        return found

    for _ in range(RESAMPLES):
        picked = rng.integers(len(of_user), size=len(of_user))
        for name, value in all_areas(np.concatenate([of_user[n] for n in picked])).items():
            drawn[name].append(value)
    bounds = {name: np.percentile(values, [2.5, 97.5]) for name, values in drawn.items()}
    means = all_areas(np.arange(len(user_N)))
    return {
        name: dict(mean=float(mean), low=float(bounds[name][0]), high=float(bounds[name][1]))
        for name, mean in means.items()
    }


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
