"""Computes means with confidence intervals."""

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000
MIN_USERS = 5  # a bootstrap over fewer users gives intervals that are far too narrow


def interval(values: Mapping[str, float], users: Mapping[str, str]) -> dict[str, float]:
    """Return the mean over pairs and its 95 % confidence interval, from a percentile bootstrap over users.

    A user's pairs stay together in every resample.

    Args:
      values: the value of each pair, keyed by pair id.
      users: the user of each pair, keyed by pair id.
    """
    return interval_of_sum([(1, values)], users)


def interval_of_sum(terms: Sequence[tuple[float, Mapping[str, float]]], users: Mapping[str, str]) -> dict[str, float]:
    """Return a weighted sum of means and its 95 % confidence interval, like `interval`.

    The means may be over different pairs, such as the valid replies of two models. Resamples in which one of the means
    has no pair are left out.

    Args:
      terms: the weight of each mean, and the value of each of its pairs, keyed by pair id; no mean may be empty.
      users: the user of each pair, keyed by pair id.
    """
    names = sorted({users[pair] for _, values in terms for pair in values})
    number = {name: index for index, name in enumerate(names)}
    picks = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    total, resampled = 0.0, np.zeros(RESAMPLES)
    for weight, values in terms:
        table = np.zeros((len(names), 2))  # the sum of a user's values, and their number
        for pair, value in values.items():
            table[number[users[pair]]] += value, 1
        sums = table[picks].sum(axis=1)
        total += weight * table[:, 0].sum() / table[:, 1].sum()
        with np.errstate(invalid='ignore'):
            resampled += weight * (sums[:, 0] / sums[:, 1])
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return dict(mean=float(total), low=float(low), high=float(high))


def shown(value: dict[str, float], users: int) -> str:
    """Format the result of `interval` as text, without the interval if there were too few users for one.

    >>> shown(dict(mean=0.5, low=0.25, high=0.75), 20), shown(dict(mean=0.5, low=0.25, high=0.75), 2)
    ('0.500 [0.250, 0.750]', '0.500')
    """
    enough = users >= MIN_USERS
    return f'{value["mean"]:.3f}' + (f' [{value["low"]:.3f}, {value["high"]:.3f}]' if enough else '')
