"""Confidence intervals against SciPy's bootstrap and against closed forms."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from rlhi_jax.evaluation.statistics import interval, interval_of_sum


def test_an_interval_over_users_with_one_pair_each_is_that_of_scipy():
    values = np.random.default_rng(0).random(40)
    found = interval({str(n): float(value) for n, value in enumerate(values)}, {str(n): str(n) for n in range(40)})
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method='percentile', random_state=0)
    assert found['mean'] == pytest.approx(values.mean())
    assert [found['low'], found['high']] == pytest.approx(list(expected.confidence_interval), abs=0.01)


def test_a_difference_of_means_over_different_pairs():
    rng = np.random.default_rng(1)
    users = {f'{user}/{n}': str(user) for user in range(30) for n in range(4)}
    first = {name: float(rng.random()) for name in users if rng.random() < 0.7}
    second = {name: float(rng.random()) + 0.2 for name in users if rng.random() < 0.7}
    found = interval_of_sum([(1, second), (-1, first)], users)
    assert found['mean'] == pytest.approx(np.mean(list(second.values())) - np.mean(list(first.values())))

    def of(names: np.ndarray) -> float:
        means = [
            np.mean([value for user in names for name, value in values.items() if users[name] == user])
            for values in (second, first)
        ]
        return means[0] - means[1]

    drawn = [of(rng.choice(30, 30).astype(str)) for _ in range(1000)]
    assert [found['low'], found['high']] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.015)


def test_resamples_without_pairs_of_a_mean_do_not_count():
    users = dict(a='u', b='v')
    found = interval_of_sum([(1, dict(a=1.0)), (-1, dict(b=0.25))], users)  # half of the resamples lack one of them
    assert found == dict(mean=0.75, low=0.75, high=0.75)
