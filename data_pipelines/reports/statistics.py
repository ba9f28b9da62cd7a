"""Statistics on stage records, for the data card."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from data_pipelines.core.records import (
    Candidate,
    Conversation,
    FollowUp,
    PreferenceRecord,
    RatedReply,
    Rewrite,
    StrangerRecord,
    TurnPersona,
)

Manifest = dict[str, Any]  # content of the manifest.json beside the records

PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)


def summary(values: Counter) -> dict[str, Any] | None:
    """Return the number, mean and percentiles of values, or None if there are no values.

    The p-th percentile is the smallest value v for which at least p % of the values are <= v.

    Args:
      values: how often each value occurs, keyed by value.
    """
    if not values:
        return None
    number, up_to_value, percentiles, wanted = values.total(), 0, {}, list(PERCENTILES)
    for value in sorted(values):
        up_to_value += values[value]
        while wanted and 100 * up_to_value >= wanted[0] * number:
            percentiles[str(wanted.pop(0))] = value
    mean = math.fsum(value * occurrences for value, occurrences in values.items()) / number
    return dict(number=number, mean=mean, percentiles=percentiles)


def by_user(counts: Counter) -> dict[str, Any]:
    """Describe how items are distributed over users.

    The result contains:

    - per_user: the distribution of the number of items per known user;
    - share_of_the_most_active: the share of known users' items that come from the most active 1 % (at least one user);
    - without_user: the number of items from unknown users.

    Args:
      counts: the number of items from each user, keyed by user id; '' stands for unknown users.
    """
    known = Counter({user: number for user, number in counts.items() if user})
    most = known.most_common(math.ceil(len(known) / 100))
    share = sum(number for _, number in most) / known.total() if known else None
    return dict(
        per_user=summary(Counter(known.values())),
        share_of_the_most_active=share,
        without_user=counts[''],
    )


def of_conversations(records: Iterable[Conversation], manifest: Manifest) -> dict[str, Any]:
    """Summarise conversations by split, language, length and user.

    The result contains the numbers of conversations, users and user turns in each split, the number of conversations in
    each language, and the distributions of user turns per conversation and of conversations per user.
    """
    splits: dict[str, Counter] = defaultdict(Counter)
    users: dict[str, Counter] = defaultdict(Counter)
    turns: Counter = Counter()
    languages: Counter = Counter()
    for conversation in records:
        user_turns = sum(message['role'] == 'user' for message in conversation['messages'])
        splits[conversation['split']].update(conversations=1, user_turns=user_turns)
        users[conversation['split']][conversation['user_id']] += 1
        languages[conversation['language']] += 1
        turns[user_turns] += 1
    for split, by_id in users.items():
        splits[split]['users'] = sum(map(bool, by_id))
    return dict(
        records=turns.total(),
        raw=manifest['made_from'].get('inputs', []),
        splits=splits,
        languages=languages,
        turns_per_conversation=summary(turns),
        users=by_user(sum(users.values(), Counter())),
    )


def of_follow_ups(records: Iterable[FollowUp], manifest: Manifest) -> dict[str, Any]:
    """Summarise the labels of follow-ups.

    The result contains the number, share and mean confidence of the turns with each label, and the number of turns in
    each split that are marked as `mined`, that is, labelled as feedback with enough confidence.
    """
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


def of_personas(records: Iterable[TurnPersona], manifest: Manifest) -> dict[str, Any]:
    """Count turns with and without a persona, and summarise the personas' word counts."""
    words = Counter(len(record['persona'].split()) for record in records)
    turns, empty = words.total(), words.pop(0, 0)
    return dict(turns=turns, turns_with_persona=turns - empty, words=summary(words))


def of_rewrites(records: Iterable[Rewrite], manifest: Manifest) -> dict[str, Any]:
    """Count the rewrites in each split, and summarise their gains (nats; see `data_pipelines/rewrites.py`)."""
    splits: Counter = Counter()
    gains: Counter = Counter()
    for record in records:
        splits[record['split']] += 1
        if 'gain' in record:
            gains[record['gain']] += 1
    return dict(records=splits.total(), splits=splits, gain=summary(gains))


def of_strangers(records: Iterable[StrangerRecord], manifest: Manifest) -> dict[str, Any]:
    """Count the records in each split, and summarise the leans (nats; see `data_pipelines/strangers.py`)."""
    splits: Counter = Counter()
    leans: Counter = Counter()
    for record in records:
        splits[record['split']] += 1
        leans.update(record['leans'])
    return dict(records=splits.total(), splits=splits, lean=summary(leans))


def of_candidates(records: Iterable[Candidate], manifest: Manifest) -> dict[str, Any]:
    """Count prompts, summarise how many replies they have, and compute the share of replies that were not cut off."""
    replies: Counter = Counter()
    with_persona = finished = 0
    for record in records:
        replies[len(record['replies'])] += 1
        with_persona += bool(record['persona'])
        finished += sum(reply['finished'] for reply in record['replies'])
    sampled = sum(number * prompts for number, prompts in replies.items())
    return dict(
        records=replies.total(),
        with_persona=with_persona,
        replies_per_prompt=summary(replies),
        share_of_replies_finished=finished / sampled if sampled else None,
    )


def texts_of_sides(pair: PreferenceRecord | RatedReply) -> dict[str, str]:
    """Return the texts of a pair's replies, keyed by 'chosen' and 'rejected'. A rated reply has only one of the two."""
    if 'completion' in pair:
        return {'chosen' if pair['label'] else 'rejected': pair['completion'][-1]['content']}
    return {side: pair[side][-1]['content'] for side in ('chosen', 'rejected')}


def of_pairs(records: Iterable[PreferenceRecord | RatedReply], manifest: Manifest) -> dict[str, Any]:
    """Count pairs by split, source and user, and summarise the lengths of their replies.

    The result also contains the share of pairs whose chosen reply is longer than the rejected one, and the result of
    the artefact probe, a classifier that tells chosen from rejected replies by their text alone.
    """
    splits: dict[str, Counter] = defaultdict(Counter)
    sources: dict[str, Counter] = defaultdict(Counter)
    users: dict[str, Counter] = defaultdict(Counter)
    lengths: dict[str, Counter] = defaultdict(Counter)
    longer: Counter = Counter()
    compared: Counter = Counter()
    for pair in records:
        splits[pair['split']].update(pairs=1, with_persona=bool(pair['persona']))
        sources[pair['id'].rsplit(' ', 1)[-1]][pair['split']] += 1
        users[pair['split']][pair['user_id']] += 1
        texts = texts_of_sides(pair)
        for unit, measure in (('characters', len), ('words', lambda text: len(text.split()))):
            sizes = {side: measure(text) for side, text in texts.items()}
            for side, size in sizes.items():
                lengths[f'{side}, {unit}'][size] += 1
            if len(sizes) == 2:
                longer[unit] += sizes['chosen'] > sizes['rejected']
                compared[unit] += 1
    for split, by_id in users.items():
        splits[split]['users'] = sum(map(bool, by_id))
    number = sum(counts['pairs'] for counts in splits.values())
    return dict(
        records=number,
        splits=splits,
        sources=sources,
        users=by_user(sum(users.values(), Counter())),
        lengths={name: summary(sizes) for name, sizes in lengths.items()},
        share_of_chosen_longer={unit: longer[unit] / pairs for unit, pairs in compared.items()},
        probe=manifest.get('probe'),
    )
