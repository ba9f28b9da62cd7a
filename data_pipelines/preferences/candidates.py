"""Candidate replies to a request: how they are asked for, scored, and paired (arXiv 2509.25137, sec. 3).

The stages `candidates` and `pairs` and the program `rlhi_jax.online` share these functions.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.records import (
    Candidate,
    Message,
    PreferenceRecord,
    PromptRecord,
    RatedReply,
    SampledReply,
)
from data_pipelines.core.turns import conversation_of, pair_id, to_turns
from data_pipelines.preferences.persona_rise import Entry, strangers_personas
from data_pipelines.teacher.generation import rise
from data_pipelines.text.openings import is_refusal
from rlhi_jax.data.rows import Capacities, capacities
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Prompt, Reply
from rlhi_jax.scoring.candidates import Candidates
from rlhi_jax.tokenizers.template import Context

Scores = list[float | None]  # one score per reply; None if the reply is too long for a row
Score = Callable[[Sequence[Candidates]], dict[str, Scores]]  # a model's scores of each prompt's replies, keyed by id


def asked(prompt: PromptRecord, config: ConfigDict) -> Prompt:
    """Return what the policy is asked for: `config.candidates.samples` replies to a prompt."""
    context = Context(persona=prompt['persona'] if config.sampler_sees_persona else '')
    return Prompt(prompt['id'], to_turns(prompt['messages']), context, config.candidates.samples)


def judgeable(pool: Sequence[Entry], prompts: Iterable[PromptRecord], counts: Counter) -> Iterator[PromptRecord]:
    """Yield each prompt that the policy can judge: it has a persona, and the pool has strangers to it."""
    for prompt in prompts:
        if not prompt['persona']:
            counts['dropped_no_persona'] += 1
        elif not strangers_personas(prompt, pool, 1):
            counts['dropped_no_stranger'] += 1
        else:
            yield prompt


def candidate_of(prompt: PromptRecord, drawn: Sequence[Reply], counts: Counter) -> Candidate | None:
    """Return a prompt with its non-empty replies, or None, with the reason counted, unless two of them differ."""
    replies = [SampledReply(text=reply.text, finished=reply.finished) for reply in drawn if reply.text]
    counts['replies'] += len(replies)
    counts['dropped_empty_replies'] += len(drawn) - len(replies)
    if len({reply['text'] for reply in replies}) < 2:
        counts['dropped_fewer_than_two_replies' if drawn else 'dropped_prompt_too_long'] += 1
        return None
    return Candidate(**prompt, replies=replies)


def one_tree(config: ConfigDict) -> Capacities:
    """Return the capacities of rows that hold all replies to a prompt."""
    return dataclasses.replace(capacities(config), pairs=config.candidates.samples)


def by_reward_model(score: Score, candidates: Sequence[Candidate]) -> list[Scores]:
    """Return the rewards of each candidate's replies under the user's persona."""
    scores_by_id = score([_under(candidate, candidate['id'], candidate['persona']) for candidate in candidates])
    return [scores_by_id[candidate['id']] for candidate in candidates]


def by_policy(score: Score, candidates: Sequence[Candidate], pool: Sequence[Entry], most: int) -> list[Scores]:
    """Return how much likelier the user's persona makes each candidate's replies than strangers' personas do, in nats.

    Args:
      score: the policy's log-probabilities.
      candidates: the prompts and their replies.
      pool: users and their personas (see `persona_pool`).
      most: the maximum number of strangers.
    """
    items = [
        [
            _under(candidate, f'persona {number} {candidate["id"]}', persona)
            for number, persona in enumerate((candidate['persona'], *strangers_personas(candidate, pool, most)))
        ]
        for candidate in candidates
    ]
    log_probs = score(list(itertools.chain.from_iterable(items)))
    by_persona = ([log_probs[item.id] for item in of_one] for of_one in items)  # the user's own persona comes first
    return [[rise(*reply) for reply in zip(*of_one, strict=True)] for of_one in by_persona]


def _under(candidate: Candidate, name: str, persona: str) -> Candidates:
    """Return a candidate's replies, to be scored under a persona."""
    return Candidates(name, candidate['messages'], persona, [reply['text'] for reply in candidate['replies']])


def best_and_worst(record: Candidate, settings: Any, counts: Counter) -> tuple[str, str] | None:
    """Return the texts of the best and the worst reply by score, or None if the replies do not make a pair.

    If the result is None, the reason is counted. Replies with equal scores are ordered by a hash of their text. A reply
    that was cut off is never chosen as the best. A cut-off reply is chosen as the worst only if no finished reply
    scores more than `min_score_gap` below the best. Without these rules, most pairs would only teach that replies must
    end.

    Args:
      record: a prompt, its replies and their scores.
      settings: `config.pairs`. Scores are first lowered by `length_penalty` for each word.
      counts: receives the reasons.
    """
    scored = [
        (score - settings.length_penalty * len(reply['text'].split()), digest(reply['text']), reply)
        for score, reply in zip(record['scores'], record['replies'], strict=True)
        if score is not None
    ]
    ranked = sorted(scored, key=lambda entry: entry[:2])
    finished = [entry for entry in ranked if entry[2]['finished']]
    if len(ranked) < 2:
        counts['dropped_fewer_than_two_scored'] += 1
        return None
    if not finished:
        counts['dropped_no_finished_reply'] += 1
        return None
    best_score, _, best = finished[-1]
    worse = [reply for score, _, reply in (*finished, *ranked) if best_score - score > settings.min_score_gap]
    if not worse:
        counts['dropped_within_margin'] += 1
        return None
    return best['text'], worse[0]['text']


def preference_record(record: Any, chosen: str, rejected: str, kind: str) -> PreferenceRecord:
    """Return the preference between two replies to the request in a record of a stage; `kind` ends the pair's id."""
    return PreferenceRecord(
        id=pair_id(record['id'], kind),
        conversation=conversation_of(record['id']),
        split=record['split'],
        user_id=record['user_id'],
        persona=record['persona'],
        prompt=record['messages'],
        chosen=[Message(role='assistant', content=chosen)],
        rejected=[Message(role='assistant', content=rejected)],
    )


def reason_to_drop(record: PreferenceRecord | RatedReply) -> str:
    """Return the reason to drop a preference, or '' to keep it."""
    if 'completion' in record:
        return 'chosen_is_a_refusal' if record['label'] and is_refusal(record['completion'][0]['content']) else ''
    chosen, rejected = (record[side][0]['content'] for side in ('chosen', 'rejected'))
    if chosen == rejected:
        return 'chosen_equals_rejected'
    refusals = [name for name, text in dict(chosen=chosen, rejected=rejected).items() if is_refusal(text)]
    return f'{refusals[0]}_is_a_refusal' if refusals else ''
