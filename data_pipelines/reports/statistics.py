"""Statistics of what stages wrote, counted from their records."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from data_pipelines.core.stage import Record

PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)


def summary(values: Counter) -> dict[str, Any] | None:
    """How values, with how often each occurs, are distributed; None of no values.

    A percentile is the smallest value that at least so many in a hundred do not exceed.
    """
    if not values:
        return None
    number, below, percentiles, wanted = values.total(), 0, {}, list(PERCENTILES)
    for value in sorted(values):
        below += values[value]
        while wanted and 100 * below >= wanted[0] * number:
            percentiles[str(wanted.pop(0))] = value
    mean = math.fsum(value * often for value, often in values.items()) / number
    return dict(number=number, mean=mean, percentiles=percentiles)


def by_user(counts: Counter) -> dict[str, Any]:
    """How much is of each user, and of the most active 1 % of users, of at least one; '' is no user."""
    known = Counter({user: number for user, number in counts.items() if user})
    most = known.most_common(math.ceil(len(known) / 100))
    share = sum(number for _, number in most) / known.total() if known else None
    return dict(
        per_user=summary(Counter(known.values())),
        share_of_the_most_active=share,
        without_user=counts[''],
    )


def of_conversations(records: Iterable[Record], manifest: dict[str, Any]) -> dict[str, Any]:
    splits: dict[str, Counter] = defaultdict(Counter)
    users: dict[str, Counter] = defaultdict(Counter)
    turns: Counter = Counter()
    languages: Counter = Counter()
    for talk in records:
        asked = sum(message['role'] == 'user' for message in talk['messages'])
        splits[talk['split']].update(conversations=1, user_turns=asked)
        users[talk['split']][talk['user_id']] += 1
        languages[talk['language']] += 1
        turns[asked] += 1
    for split, own in users.items():
        splits[split]['users'] = sum(map(bool, own))
    return dict(
        records=turns.total(),
        raw=manifest['made_from'].get('inputs', []),
        splits=splits,
        languages=languages,
        turns_per_conversation=summary(turns),
        users=by_user(sum(users.values(), Counter())),
    )


def of_follow_ups(records: Iterable[Record], manifest: dict[str, Any]) -> dict[str, Any]:
    turns: Counter = Counter()
    confidence: Counter = Counter()
    mined: Counter = Counter()
    for turn in records:
        turns[turn['label']] += 1
        confidence[turn['label']] += turn['confidence']
        mined[turn['split']] += turn['mined']
    total = turns.total()
    labels = {
        label: dict(turns=number, share=number / total, mean_confidence=confidence[label] / number)
        for label, number in turns.items()
    }
    settings = manifest['made_from'].get('settings', {})
    return dict(records=total, labels=labels, mined=mined, min_confidence=settings.get('min_confidence'))


def of_personas(records: Iterable[Record], manifest: dict[str, Any]) -> dict[str, Any]:
    words = Counter(len(record['persona'].split()) for record in records)
    turns, empty = words.total(), words.pop(0, 0)
    return dict(turns=turns, turns_with_persona=turns - empty, words=summary(words))


def of_rewrites(records: Iterable[Record], manifest: dict[str, Any]) -> dict[str, Any]:
    splits: Counter = Counter()
    gains: Counter = Counter()
    for record in records:
        splits[record['split']] += 1
        if 'gain' in record:
            gains[record['gain']] += 1
    return dict(records=splits.total(), splits=splits, gain=summary(gains))


def of_candidates(records: Iterable[Record], manifest: dict[str, Any]) -> dict[str, Any]:
    replies: Counter = Counter()
    with_persona = finished = 0
    for record in records:
        replies[len(record['replies'])] += 1
        with_persona += bool(record['persona'])
        finished += sum(reply['finished'] for reply in record['replies'])
    sampled = sum(number * often for number, often in replies.items())
    return dict(
        records=replies.total(),
        with_persona=with_persona,
        replies_per_prompt=summary(replies),
        share_of_replies_finished=finished / sampled if sampled else None,
    )


def of_pairs(records: Iterable[Record], manifest: dict[str, Any]) -> dict[str, Any]:
    splits: dict[str, Counter] = defaultdict(Counter)
    sources: dict[str, Counter] = defaultdict(Counter)
    users: dict[str, Counter] = defaultdict(Counter)
    lengths: dict[str, Counter] = defaultdict(Counter)
    longer: Counter = Counter()
    for pair in records:
        splits[pair['split']].update(pairs=1, with_persona=bool(pair['persona']))
        sources[pair['id'].rsplit(' ', 1)[-1]][pair['split']] += 1
        users[pair['split']][pair['user_id']] += 1
        texts = {side: pair[side][-1]['content'] for side in ('chosen', 'rejected')}
        for unit, measure in (('characters', len), ('words', lambda text: len(text.split()))):
            sizes = {side: measure(text) for side, text in texts.items()}
            for side, size in sizes.items():
                lengths[f'{side}, {unit}'][size] += 1
            longer[unit] += sizes['chosen'] > sizes['rejected']
    for split, own in users.items():
        splits[split]['users'] = sum(map(bool, own))
    number = sum(counts['pairs'] for counts in splits.values())
    return dict(
        records=number,
        splits=splits,
        sources=sources,
        users=by_user(sum(users.values(), Counter())),
        lengths={name: summary(sizes) for name, sizes in lengths.items()},
        share_of_chosen_longer={unit: often / number for unit, often in longer.items()},
        probe=manifest.get('probe'),
    )
