"""Compare how well models satisfy simulated users under each persona condition."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.core.record_files import RECORDS, load_records
from data_pipelines.core.records import SatisfactionRecord
from rlhi_jax.evaluation.statistics import MIN_USERS, interval, interval_of_sum
from rlhi_jax.io.errors import NothingToEvaluate

Tables = dict[str, dict[str, dict[str, SatisfactionRecord]]]  # model → condition → prompt id


def summarise(by_model: Mapping[str, Path], held_out: Sequence[str] = ()) -> dict[str, Any]:
    """Compare how well models satisfy users under each persona condition, over all tastes and for each taste alone.

    For each model, the result contains the satisfaction under each condition, and the `gap`: the satisfaction under the
    condition 'own' minus the satisfaction under 'other'. `gap_change` is the last model's gap minus the first model's
    gap. Every number is a mean over the prompts that all models answered in all conditions, with a 95 % interval from
    a bootstrap over users. Users with a held-out taste count only in `by_taste`, which compares the models on one taste
    at a time.

    A model that uses personas gets a larger gap merely by giving more valid replies. `gap_of_valid` and
    `gap_of_valid_change` therefore compare the mean satisfaction with valid replies under the two conditions. They are
    left out if a model gives fewer than MIN_USERS users a valid reply under one of the conditions.

    `valid` and `valid_other` are the shares of valid replies under the conditions 'own' and 'other'.

    Args:
      by_model: folders of the stage `satisfaction`, keyed by model name.
      held_out: tastes that only users in the test split have.

    Raises:
      NothingToEvaluate: a model has no replies under the condition 'own' or 'other', or no prompt is left.
    """
    tables = _read(by_model)
    answered = [set(table) for by_condition in tables.values() for table in by_condition.values()]
    shared = sorted(set.intersection(*answered))
    first = next(iter(tables.values()))['own']
    met = {name: first[name]['met'] for name in shared}
    known = [name for name in shared if not set(met[name]) & set(held_out)]
    if not known:
        raise NothingToEvaluate(
            'no prompt of a user without held-out tastes (config.simulated.held_out) was answered by all models in '
            'all persona conditions: raise config.simulated.users.test'
        )
    users = {name: first[name]['user_id'] for name in shared}
    result = _compare(tables, known, lambda record: record['satisfaction'])
    for model, by_condition in tables.items():
        for field, condition in (('valid', 'own'), ('valid_other', 'other')):
            valid = {name: float(by_condition[condition][name]['valid']) for name in known}
            result['models'][model][field] = interval(valid, users)
    _add_gaps_of_valid(result, tables, known, users)
    result['by_taste'] = {}
    for taste in sorted({taste for tastes in met.values() for taste in tastes}):
        names = [name for name in shared if taste in met[name]]
        row = _compare(tables, names, lambda record, taste=taste: record['met'][taste])
        result['by_taste'][taste] = dict(row, held_out=taste in held_out)
    return result


def _add_gaps_of_valid(result: dict[str, Any], tables: Tables, names: Sequence[str], users: Mapping[str, str]) -> None:
    """Add the gap between valid replies of each model, and its change, to the result of `summarise`."""
    gaps = {}
    for model, by_condition in tables.items():
        own, other = (
            {
                name: by_condition[condition][name]['satisfaction']
                for name in names
                if by_condition[condition][name]['valid']
            }
            for condition in ('own', 'other')
        )
        if min(len({users[name] for name in replies}) for replies in (own, other)) < MIN_USERS:
            return
        gaps[model] = [(1.0, own), (-1.0, other)]
    for model, terms in gaps.items():
        result['models'][model]['gap_of_valid'] = interval_of_sum(terms, users)
    first, last = (gaps[name] for name in (next(iter(gaps)), next(reversed(gaps))))
    result['gap_of_valid_change'] = interval_of_sum([*last, *((-weight, values) for weight, values in first)], users)


def _read(by_model: Mapping[str, Path]) -> Tables:
    tables: Tables = {}
    for model, folder in by_model.items():
        for record in load_records(folder / RECORDS):
            tables.setdefault(model, {}).setdefault(record['condition'], {})[record['id']] = record
        if not {'own', 'other'} <= tables.get(model, {}).keys():
            raise NothingToEvaluate(
                f"the evaluation {folder.name!r} lacks replies under the persona condition 'own' or 'other': raise "
                'config.sampler.prompt_tokens'
            )
    return tables


def _compare(tables: Tables, names: Sequence[str], value: Callable[[SatisfactionRecord], float]) -> dict[str, Any]:
    """Compare the models by one value of a reply, such as the satisfaction with it.

    The result contains the mean of the value for each model and condition, each model's gap (the mean under 'own' minus
    the mean under 'other'), and the last model's gap minus the first model's gap (`gap_change`).
    """
    first, last = next(iter(tables)), next(reversed(tables))
    users = {name: tables[first]['own'][name]['user_id'] for name in names}

    def values(model: str, condition: str) -> np.ndarray:
        return np.array([value(tables[model][condition][name]) for name in names], float)

    def mean(numbers: np.ndarray) -> dict[str, float]:
        return interval(dict(zip(names, numbers.tolist(), strict=True)), users)

    models = {
        model: {condition: mean(values(model, condition)) for condition in by_condition}
        for model, by_condition in tables.items()
    }
    gaps = {model: values(model, 'own') - values(model, 'other') for model in tables}
    for model, gap in gaps.items():
        models[model]['gap'] = mean(gap)
    change = mean(gaps[last] - gaps[first])
    return dict(prompts=len(names), users=len(set(users.values())), models=models, gap_change=change)
