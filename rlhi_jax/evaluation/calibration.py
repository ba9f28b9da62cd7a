"""Calibration: whether a model's probability that one reply is better than another matches how often it is right.

Under the model of Bradley and Terry (1952), the probability that the chosen reply of a pair is preferred is σ(gap),
where the gap is the chosen reply's reward minus the rejected reply's. A model's confidence in its own choice is
σ(|gap|), which is at least 0.5.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhi_jax.io.files import digest

BINS = 10  # intervals of confidence, of equal width, from 0.5 to 1
MAX_LOG_SCALE = 12.0  # scales are between e^-12 and e^12; a larger one would be needed only if every choice is right


def right(gap_P: np.ndarray) -> np.ndarray:
    """Return, for each pair, 1 if the chosen reply has the larger reward, 0 if it has the smaller one, or else 0.5."""
    return (1 + np.sign(gap_P)) / 2


def log_loss(gap_P: np.ndarray) -> np.ndarray:
    """Return -log σ(gap) for each pair, in nats. It is log 2 for a model that cannot tell the replies apart."""
    return np.logaddexp(0, -gap_P)


def reliability(gap_P: np.ndarray) -> list[dict[str, float]]:
    """Return the reliability curve: for each non-empty bin of confidence, the mean confidence and the accuracy.

    >>> [{name: round(value, 2) for name, value in each.items()} for each in reliability(np.array([2.0, 2.0, -2.0]))]
    [{'pairs': 3, 'confidence': 0.88, 'accuracy': 0.67}]
    """
    confidence_P = 1 / (1 + np.exp(-np.abs(gap_P)))
    bin_P = np.minimum((2 * BINS * (confidence_P - 0.5)).astype(int), BINS - 1)
    return [
        dict(
            pairs=int((bin_P == i).sum()),
            confidence=float(confidence_P[bin_P == i].mean()),
            accuracy=float(right(gap_P)[bin_P == i].mean()),
        )
        for i in np.unique(bin_P)
    ]


def calibration_error(gap_P: np.ndarray) -> float:
    """Return the expected calibration error (arXiv 1706.04599, eq. 3): the mean over pairs of a bin's |error|."""
    curve = reliability(gap_P)
    return sum(each['pairs'] * abs(each['confidence'] - each['accuracy']) for each in curve) / len(gap_P)


def fitted_scale(gap_P: np.ndarray) -> float:
    """Return the factor a > 0 for which the mean of -log σ(a gap) is smallest: temperature scaling with T = 1 / a.

    The loss is convex in a, so bisection on its derivative finds the minimum (arXiv 1706.04599, sec. 4.2).
    """
    low, high = -MAX_LOG_SCALE, MAX_LOG_SCALE
    for _ in range(60):
        middle = (low + high) / 2
        slope = -(gap_P * np.exp(-np.logaddexp(0, np.exp(middle) * gap_P))).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def calibrated(gaps: Mapping[str, float], users: Mapping[str, str]) -> dict[str, Any]:
    """Return the calibration error and the log loss of pairs, before and after scaling the gaps.

    Users are split in two halves by hash. The gaps of each half are scaled by the factor fitted to the other half, so
    the pairs of a user do not decide how they are scaled themselves. With fewer than two users, nothing is fitted, and
    only the values before scaling are returned.

    Args:
      gaps: the gap of each pair, keyed by pair id.
      users: the user of each pair, keyed by pair id.
    """
    names = sorted(gaps)
    gap_P = np.array([gaps[name] for name in names])
    result: dict[str, Any] = dict(reliability=reliability(gap_P), before=_errors(gap_P))
    halves = _halves(sorted({users[name] for name in names}))
    if len(halves) < 2:
        return result
    half_P = np.array([users[name] in halves[0] for name in names])
    scaled_P = np.where(half_P, fitted_scale(gap_P[~half_P]) * gap_P, fitted_scale(gap_P[half_P]) * gap_P)
    return result | dict(after=_errors(scaled_P), scale=fitted_scale(gap_P))


def _errors(gap_P: np.ndarray) -> dict[str, float]:
    return dict(calibration_error=calibration_error(gap_P), log_loss=float(log_loss(gap_P).mean()))


def _halves(users: Sequence[str]) -> list[set[str]]:
    ranked = sorted(users, key=digest)
    return [half for half in (set(ranked[::2]), set(ranked[1::2])) if half]
