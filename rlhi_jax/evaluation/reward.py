"""Evaluates rewards on pairs: accuracy and calibration under several personas, baselines, and kinds of pairs.

A gap is the chosen reply's reward minus the rejected reply's.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhi_jax.data.tree import Preference
from rlhi_jax.evaluation.calibration import calibrated, log_loss, right
from rlhi_jax.evaluation.conditions import asker, question
from rlhi_jax.evaluation.statistics import interval

SIMILAR = 0.1  # replies whose lengths differ by less than this fraction of the longer one count as equally long

Gaps = Mapping[str, float]  # the gap of each pair, keyed by pair id


def evaluation(gaps: Mapping[str, Gaps], preferences: Sequence[Preference]) -> dict[str, Any]:
    """Return what the gaps say about a reward model. Only pairs with a gap under every condition are used.

    Intervals are 95 % confidence intervals from a bootstrap over users. The result contains:

    - conditions: for each persona condition, the accuracy over pairs, the accuracy as a mean over users, and the log
      loss. A pair whose replies have the same reward counts as half right.
    - difference: how much more accurate 'own' is than each other condition and each baseline.
    - baselines: the accuracy of choosing the longer reply, and of choosing what most other users chose of the same two
      replies (half right if no other user chose, or as many chose either).
    - calibration: the reliability curve and errors (`rlhi_jax.evaluation.calibration`) under the first condition.
    - slices: the accuracy under the first condition for groups of pairs (see `slices_of`).

    Args:
      gaps: the gaps under each condition, keyed by condition; 'own' comes first if there is one.
      preferences: the preferences with their own personas.
    """
    scored = set.intersection(*map(set, gaps.values()))
    kept = [preference for preference in preferences if preference.id in scored]
    users = {preference.id: asker(preference) for preference in kept}
    first, *_ = gaps
    accuracies = {name: _right({pair: values[pair] for pair in users}) for name, values in gaps.items()}
    baselines = dict(longer=_longer(kept), population=_population(kept))
    return dict(
        pairs=len(kept),
        users=len(set(users.values())),
        conditions={
            name: dict(
                accuracy=interval(accuracies[name], users),
                accuracy_by_user=_by_user(accuracies[name], users),
                log_loss=interval({pair: float(log_loss(np.float64(values[pair]))) for pair in users}, users),
            )
            for name, values in gaps.items()
        },
        baselines={name: interval(values, users) for name, values in baselines.items()},
        difference={
            f'{first} - {name}': interval({pair: accuracies[first][pair] - values[pair] for pair in users}, users)
            for name, values in (accuracies | baselines).items()
            if name != first
        },
        calibration=calibrated({pair: gaps[first][pair] for pair in users}, users),
        slices=_sliced(accuracies[first], kept, users),
    )


def slices_of(preference: Preference) -> dict[str, str]:
    """Return the groups that a preference belongs to, keyed by what the groups differ in.

    `claims` is the number of sentences in the persona, so it shows what a short history costs.
    """
    lengths = [_length(side) for side in (preference.chosen, preference.rejected)]
    near = abs(lengths[0] - lengths[1]) < SIMILAR * max(lengths)
    claims = len(re.findall(r'[^.!?\s][^.!?]*', preference.persona))
    return dict(
        length='about as long' if near else 'chosen is longer' if lengths[0] > lengths[1] else 'chosen is shorter',
        turn='first request' if len(preference.prompt) == 1 else 'later request',
        kind=preference.kind or 'unknown',
        claims=str(claims) if claims < 2 else '2 or 3' if claims < 4 else '4 or more',
    )


def _sliced(accuracy: Mapping[str, float], kept: Sequence[Preference], users: Mapping[str, str]) -> dict[str, Any]:
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for preference in kept:
        for matter, group in slices_of(preference).items():
            groups[matter][group].append(preference.id)

    def figures(pairs: Sequence[str]) -> dict[str, Any]:
        mean = interval({pair: accuracy[pair] for pair in pairs}, users)
        return dict(pairs=len(pairs), users=len({users[pair] for pair in pairs}), accuracy=mean)

    return {
        matter: {group: figures(pairs) for group, pairs in sorted(of_group.items())}
        for matter, of_group in groups.items()
    }


def _right(gaps: Gaps) -> dict[str, float]:
    return {pair: float(right(np.float64(gap))) for pair, gap in gaps.items()}


def _by_user(values: Mapping[str, float], users: Mapping[str, str]) -> dict[str, float]:
    of_user: dict[str, list[float]] = defaultdict(list)
    for pair, value in values.items():
        of_user[users[pair]].append(value)
    means = {user: sum(each) / len(each) for user, each in of_user.items()}
    return interval(means, {user: user for user in means})


def _longer(preferences: Sequence[Preference]) -> dict[str, float]:
    return _right({p.id: _length(p.chosen) - _length(p.rejected) for p in preferences})


def _population(preferences: Sequence[Preference]) -> dict[str, float]:
    """Return, for each pair, whether most other users chose the same one of its two replies."""
    votes: Counter = Counter()  # by user, for the first of two replies over the second
    for p in preferences:
        for user in (asker(p), None):  # None stands for all users
            votes[user, question(p)] += 1
            votes[user, question(p, swapped=True)] -= 1
    return _right({p.id: votes[None, question(p)] - votes[asker(p), question(p)] for p in preferences})


def _length(reply: Sequence[tuple[str, str]]) -> int:
    return sum(len(text) for _, text in reply)
