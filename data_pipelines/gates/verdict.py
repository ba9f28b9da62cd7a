"""The rules of the gate: a new policy is promoted if users gain from it and nothing else has become worse."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.evaluation.statistics import MIN_USERS, interval

Interval = dict[str, float]  # mean, low and high


class Gain(NamedTuple):
    """What users gain from the new policy.

    Attributes:
      of: what is measured, in words that a sentence can begin with.
      users: the number of users.
      change: the gain, with its interval over users.
    """

    of: str
    users: int
    change: Interval


class Measure(NamedTuple):
    """A share from 0 to 1 that a new policy must not make worse.

    Attributes:
      before: its mean with the old policy.
      after: its mean with the new policy.
      change: the mean change, with its interval.
      units: the number of users (or instructions, or claims) that the interval is over.
      more_is_better: whether a rise is an improvement.
    """

    before: float
    after: float
    change: Interval
    units: int
    more_is_better: bool


def measure(
    before: Mapping[str, float], after: Mapping[str, float], users: Mapping[str, str], *, more_is_better: bool
) -> Measure | None:
    """Compare a measure over the questions that both policies answered; None if there is no such question.

    Args:
      before: the old policy's values, keyed by question.
      after: the new policy's values.
      users: the user of each question. Intervals are over users.
      more_is_better: whether a rise is an improvement.
    """
    if not (shared := sorted(before.keys() & after.keys())):
        return None
    means = (sum(values[name] for name in shared) / len(shared) for values in (before, after))
    change = interval({name: after[name] - before[name] for name in shared}, users)
    return Measure(*means, change, len({users[name] for name in shared}), more_is_better)


def verdict(
    gain: Gain | None,
    measures: Mapping[str, Measure | None],
    length_ratio: float | None,
    kl: float | None,
    settings: ConfigDict,
) -> dict[str, Any]:
    """Return whether the new policy is promoted, and why.

    It is promoted if the lower end of the gain's 95 % interval is above `min_gain`, and no rule is broken: no measure
    is worse by more than `tolerance` with an interval that excludes 0, and length and divergence are within limits. An
    interval over fewer than `MIN_USERS` users says nothing.

    Args:
      gain: what users gain; None if it could not be measured.
      measures: the measures, keyed by name; None for those that could not be taken.
      length_ratio: the number of words in the new policy's replies, divided by that in the old policy's; None if no
        user asked anything.
      kl: the divergence of the new policy from the old one, in nats per token of its replies; None if no reply of it to
        a user could be scored.
      settings: the section `config.gate`.

    Returns:
      `promoted`; `why`, a list of sentences; and all figures.
    """
    measures = {name: each for name, each in measures.items() if each}
    against = [*_no_gain(gain, settings.min_gain), *_regressions(measures, settings.tolerance)]
    if length_ratio is None:
        against.append('no request of a held-out user was answered')
    elif not 1 / settings.max_length_ratio <= length_ratio <= settings.max_length_ratio:
        against.append(f'replies are {length_ratio:.2f} times as long as before')
    if kl is None:
        against.append('no reply of the new policy to a user is finished and fits in a row of config.rows.tokens')
    elif not kl <= settings.max_kl:  # also if it is NaN
        against.append(f'the policy has moved {kl:.2f} nats per token away from the one before')
    return dict(
        promoted=not against,
        why=against or [f'{gain.of} is {_shown(gain.change)} for {gain.users} users, and nothing became worse'],
        gain=gain and gain._asdict(),
        measures={name: each._asdict() for name, each in measures.items()},
        length_ratio=length_ratio,
        kl=kl,
    )


def _no_gain(gain: Gain | None, least: float) -> Sequence[str]:
    if gain is None:
        return ['no held-out user could judge the policy']
    if gain.users < MIN_USERS:
        return [f'only {gain.users} held-out users judged the policy, and an interval needs at least {MIN_USERS}']
    if gain.change['low'] <= least:
        return [f'{gain.of} is {_shown(gain.change)}, and this interval must lie above {least:g}']
    return []


def _regressions(measures: Mapping[str, Measure], tolerance: float) -> Sequence[str]:
    found = []
    for name, (before, after, change, units, more_is_better) in measures.items():
        sure = units >= MIN_USERS and (change['high'] < 0 if more_is_better else change['low'] > 0)
        if sure and abs(change['mean']) > tolerance:
            found.append(f'{name} {"fell" if more_is_better else "rose"} from {before:.2f} to {after:.2f}')
    return found


def _shown(change: Interval) -> str:
    return f'{change["mean"]:.3f} [{change["low"]:.3f}, {change["high"]:.3f}]'
