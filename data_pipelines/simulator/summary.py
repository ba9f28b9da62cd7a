"""Satisfaction of simulated users by model and persona condition, with the gap and its change."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.core.stage import RECORDS, Record, load_records
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.io.errors import NothingToEvaluate

Tables = dict[str, dict[str, dict[str, Record]]]  # model → condition → prompt id


def summarise(by_model: dict[str, Path], held_out: Sequence[str] = ()) -> dict[str, Any]:
    """Satisfaction by model and condition, the gap, and its change from the first model to the last; 95 % intervals.

    All of it is over the prompts that every model answered in every condition; intervals resample users. Users with a
    taste that is `held_out` count only in `by_pair`, where a reply's value is whether it meets the pair's taste.
    """
    tables: Tables = {}
    for model, folder in by_model.items():
        for record in load_records(folder / RECORDS):
            tables.setdefault(model, {}).setdefault(record['condition'], {})[record['id']] = record
    for model, folder in by_model.items():
        if not {'own', 'opposing'} <= tables.get(model, {}).keys():
            raise NothingToEvaluate(
                f'{folder} has no reply under a persona of the user and one under an opposing: raise '
                'config.sampler.prompt_tokens, or see config.satisfaction.conditions'
            )
    shared = sorted(set.intersection(*(set(t) for conditions in tables.values() for t in conditions.values())))
    met = {name: next(iter(next(iter(tables.values())).values()))[name]['met'] for name in shared}
    known = [name for name in shared if not set(met[name]) & set(held_out)]
    if not known:
        raise NothingToEvaluate('no prompt of users without held-out tastes was answered in every condition')
    result = _summary(tables, known, lambda record: record['satisfaction'])
    for model, conditions in tables.items():
        valid = {name: float(conditions['own'][name]['valid']) for name in known}
        result['models'][model]['valid'] = interval(valid, {name: conditions['own'][name]['user_id'] for name in known})
    result['by_pair'] = {
        pair: _summary(
            tables, [name for name in shared if pair in met[name]], lambda record, pair=pair: record['met'][pair]
        )
        | dict(held_out=pair in held_out)
        for pair in sorted({pair for pairs in met.values() for pair in pairs})
    }
    return result


def _summary(tables: Tables, names: Sequence[str], value: Callable[[Record], float]) -> dict[str, Any]:
    """Mean of `value` by model and condition, the gap between own and opposing, and its change."""
    first, last = next(iter(tables)), next(reversed(tables))
    users = {name: tables[first]['own'][name]['user_id'] for name in names}

    def values(model: str, condition: str) -> np.ndarray:
        return np.array([value(tables[model][condition][name]) for name in names], float)

    def mean(found: np.ndarray) -> dict[str, float]:
        return interval(dict(zip(names, found.tolist(), strict=True)), users)

    models = {model: {c: mean(values(model, c)) for c in conditions} for model, conditions in tables.items()}
    gaps = {model: values(model, 'own') - values(model, 'opposing') for model in tables}
    for model, gap in gaps.items():
        models[model]['gap'] = mean(gap)
    change = mean(gaps[last] - gaps[first])
    return dict(prompts=len(names), users=len(set(users.values())), models=models, gap_change=change)
