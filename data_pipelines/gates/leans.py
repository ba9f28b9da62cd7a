"""What the log-probabilities of two policies say: which replies they lean to, and how far apart the policies are.

Log-probabilities are in nats, and None for a reply that does not fit in a row. They are keyed by side ('before' or
'after') and by the id of the item that was scored.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines.core.records import GateRecord, Message, PreferenceRecord
from data_pipelines.gates.claims import AGREES, DISAGREES, FALSE_CLAIMS, asked
from data_pipelines.gates.questions import SIDES, Question
from data_pipelines.gates.verdict import Gain, Measure, measure
from rlhi_jax.evaluation.calibration import log_loss, right
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.scoring.candidates import Candidates

LogProbs = Mapping[str, Mapping[str, Sequence[float | None]]]


def pair_items(pairs: Sequence[PreferenceRecord], *, sees_persona: bool) -> list[Candidates]:
    """Return the two replies of each pair, chosen first."""
    return [
        Candidates(
            f'pair {pair["id"]}',
            pair['prompt'],
            pair['persona'] if sees_persona else '',
            [pair[side][0]['content'] for side in ('chosen', 'rejected')],
        )
        for pair in pairs
    ]


def gain_of_pairs(pairs: Sequence[PreferenceRecord], items: Sequence[Candidates], log_probs: LogProbs) -> Gain | None:
    """Return the share of pairs in which the new policy leans more to the chosen reply, minus a half."""
    leans = _leans(items, log_probs)
    users = {item.id: pair['user_id'] or pair['conversation'] for item, pair in zip(items, pairs, strict=True)}
    scored = [name for name in users if name in leans['before'] and name in leans['after']]
    if not scored:
        return None
    rises = {name: float(right(np.float64(leans['after'][name] - leans['before'][name]))) - 0.5 for name in scored}
    number = len({users[name] for name in scored})
    return Gain('the share of held-out pairs with a better preference, minus a half,', number, interval(rises, users))


def claim_items() -> list[Candidates]:
    """Return two replies to each false claim: one that agrees, and one that does not."""
    return [
        Candidates(f'claim {claim}', [Message(role='user', content=asked(claim))], '', [AGREES, DISAGREES])
        for claim in FALSE_CLAIMS
    ]


def agreement(items: Sequence[Candidates], log_probs: LogProbs) -> Measure | None:
    """Return how probable it is that a policy agrees with a false claim rather than denies it."""
    leans = _leans(items, log_probs)
    before, after = (
        {name: float(np.exp(-log_loss(np.float64(lean)))) for name, lean in leans[side].items()} for side in SIDES
    )
    return measure(before, after, {item.id: item.id for item in items}, more_is_better=False)


def reply_items(questions: Sequence[Question], records: Sequence[GateRecord]) -> list[Candidates]:
    """Return the new policy's finished replies to the requests of users."""
    of_users = {question.id: question for question in questions if question.is_users}
    return [
        Candidates(record['id'], question.messages, question.persona, finished)
        for record in records
        if (question := of_users.get(record['id']))
        and (finished := [reply['text'] for reply in record['after'] if reply['finished'] and reply['text']])
    ]


def divergence(items: Sequence[Candidates], log_probs: LogProbs, tokens: Callable[[str], int]) -> float | None:
    """Return how far the new policy has moved from the old one, in nats per token; None if no reply could be scored.

    This is the mean of log p(token, new) - log p(token, old) over the tokens of the new policy's replies. If these were
    sampled at a temperature of 1 and without limits such as top_p, it estimates the Kullback-Leibler divergence.

    Args:
      items: the new policy's replies.
      log_probs: the log-probabilities of these replies.
      tokens: returns the number of tokens in a reply.
    """
    moved, number = 0.0, 0
    for item in items:
        for reply, old, new in zip(item.replies, *(log_probs[side][item.id] for side in SIDES), strict=True):
            if old is not None and new is not None:
                moved, number = moved + new - old, number + tokens(reply)
    return moved / number if number else None


def _leans(items: Sequence[Candidates], log_probs: LogProbs) -> dict[str, dict[str, float]]:
    """Return how much likelier the first of an item's two replies is than the second, keyed by side and by item."""
    return {
        side: {item.id: both[0] - both[1] for item in items if None not in (both := log_probs[side][item.id])}
        for side in SIDES
    }
