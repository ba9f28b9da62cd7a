"""Which rewrite of a reply to learn from: the reason to drop each of the other samples, and the best of the rest.

Checks of the text alone come first, since the others ask the teacher. A sample is counted by the first reason that
holds:

    empty                it has no text
    cut_off              it did not end by itself
    degenerate           it has no word, repeats itself, or opens a turn as chat templates do
    preamble             it opens with words about itself, such as "Here is a shorter answer"
    refusal              it opens as a refusal
    copy                 it is nearly the same as a text of the conversation
    another_language     it is in none of the languages that `languages.wanted` returns
    longer_than_a_row    the teacher cannot read it
    not_better           its gain is below `config.rewrites.min_gain`
    not_the_best         another sample's gain is larger
"""

from collections import Counter
from collections.abc import Sequence, Set

from rapidfuzz import fuzz

from data_pipelines.text import degenerate as replies
from data_pipelines.text import languages, openings
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Reply


def resemblance(one: str, other: str) -> float:
    """The share of two texts that is the same, from 0 to 1: twice their longest common subsequence by their characters.

    Case and the width of blanks do not count. A change of one letter in twenty leaves 0.95.

    >>> resemblance('Bees make honey.', 'bees  make honey.'), round(resemblance('bees', 'bears'), 2)
    (1.0, 0.67)
    """
    return fuzz.ratio(' '.join(one.casefold().split()), ' '.join(other.casefold().split())) / 100


def reason_to_drop(reply: Reply, known: Sequence[str], wanted: Set[str], max_resemblance: float) -> str:
    """The reason to drop a sample, by its text alone; '' if there is none.

    Args:
      known: texts that it must not copy: the original, and the turns of the conversation up to the reply after the
        feedback, which may be another model's.
      wanted: codes of the languages that it may be in; any language if empty.
      max_resemblance: largest allowed `resemblance` to a known text.
    """
    text = reply.text
    if not text:
        return 'empty'
    if not reply.finished:
        return 'cut_off'
    if not replies.words(text) or replies.opens_a_turn(text) or replies.is_repetitive(text):
        return 'degenerate'
    if openings.has_preamble(text):
        return 'preamble'
    if openings.is_refusal(text):
        return 'refusal'
    if any(resemblance(text, other) > max_resemblance for other in known):
        return 'copy'
    if wanted and languages.language(text) not in {'', *wanted}:
        return 'another_language'
    return ''


def best(samples: Sequence[tuple[str, float | None]], min_gain: float, counts: Counter) -> tuple[str, float] | None:
    """The (text, gain in nats) with the largest gain; None if no gain is at least `min_gain`.

    Among equals a hash of the text decides. The gain is None for a text that the teacher cannot read. Every text but
    the best is counted by its reason.
    """
    ranked = sorted((gain, digest(text), text) for text, gain in samples if gain is not None)
    better = [(text, gain) for gain, _, text in ranked if gain >= min_gain]
    counts['dropped_rewrite_longer_than_a_row'] += len(samples) - len(ranked)
    counts['dropped_rewrite_not_better'] += len(ranked) - len(better)
    counts['dropped_rewrite_not_the_best'] += len(better[:-1])
    return better[-1] if better else None
