"""Computes means with confidence intervals."""

from collections import defaultdict

import numpy as np

RESAMPLES = 2000
MIN_USERS = 5  # a bootstrap over fewer users gives intervals that are far too narrow


def interval(values: dict[str, float], users: dict[str, str]) -> dict[str, float]:
    """Return the mean over pairs and its 95 % confidence interval, from a percentile bootstrap over users.

    A user's pairs stay together in every resample.

    Args:
      values: the value of each pair, keyed by pair id.
      users: the user of each pair, keyed by pair id.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for pair, value in values.items():
        total = sums[users[pair]]
        total[0], total[1] = total[0] + value, total[1] + 1
    table = np.array([sums[user] for user in sorted(sums)])
    picks = np.random.default_rng(0).integers(len(table), size=(RESAMPLES, len(table)))
    resampled = table[picks].sum(axis=1)
    low, high = np.percentile(resampled[:, 0] / resampled[:, 1], [2.5, 97.5])
    return dict(mean=float(table[:, 0].sum() / table[:, 1].sum()), low=float(low), high=float(high))


def shown(value: dict[str, float], users: int) -> str:
    """Format the result of `interval` as text, without the interval if there were too few users for one.

    >>> shown(dict(mean=0.5, low=0.25, high=0.75), 20), shown(dict(mean=0.5, low=0.25, high=0.75), 2)
    ('0.500 [0.250, 0.750]', '0.500')
    """
    enough = users >= MIN_USERS
    return f'{value["mean"]:.3f}' + (f' [{value["low"]:.3f}, {value["high"]:.3f}]' if enough else '')
