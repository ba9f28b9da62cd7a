"""Chooses which sampled rewrite of a reply to learn from, and counts every other sample by the reason to drop it.

The checks that need only the text come first. The last three need a sample's gain, which is how much more likely the
user's feedback makes it by a model's log-probabilities, in nats. Each dropped sample is counted under the first reason
that applies:

    empty                the sample has no text
    cut_off              the sample was cut off before its end
    degenerate           the sample has no words, repeats itself, or contains a turn marker of a chat template
    preamble             the sample opens with words about itself, such as "Here is a shorter answer"
    refusal              the sample opens with a refusal
    copy                 the sample is nearly identical to a text in the conversation
    another_language     the sample's language is not one of the languages that `languages.wanted` returns
    longer_than_a_row    the sample is too long to score
    not_better           the sample's gain is below `config.rewrites.min_gain`
    not_the_best         another sample has a larger gain
"""

from collections import Counter
from collections.abc import Sequence, Set

from rapidfuzz import fuzz

from data_pipelines.text import degenerate as replies
from data_pipelines.text import languages, openings
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Reply


def resemblance(one: str, other: str) -> float:
    """Return how similar two texts are, from 0 to 1.

    The result is twice the length of the longest common subsequence of characters, divided by the texts' total length.
    Case and the amount of white space are ignored. Changing one letter in twenty gives 0.95.

    >>> resemblance('Bees make honey.', 'bees  make honey.'), round(resemblance('bees', 'bears'), 2)
    (1.0, 0.67)
    """
    return fuzz.ratio(' '.join(one.casefold().split()), ' '.join(other.casefold().split())) / 100


def reason_to_drop(reply: Reply, known: Sequence[str], wanted: Set[str], max_resemblance: float) -> str:
    """Return the reason to drop a sample, judged by its text alone; '' if there is none.

    Args:
      known: texts that the sample must not copy: all turns of the conversation up to and including the reply after the
        feedback, and the reply to improve, which is not in the conversation if the policy regenerated it.
      wanted: codes of the accepted languages; if empty, every language is accepted.
      max_resemblance: the largest allowed `resemblance` to a known text.
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


def accepted(
    drawn: Sequence[Reply], known: Sequence[str], wanted: Set[str], max_resemblance: float, counts: Counter
) -> list[str]:
    """Return the texts of the samples that there is no reason to drop, and count the others by reason.

    The arguments `known`, `wanted` and `max_resemblance` are those of `reason_to_drop`.
    """
    texts = []
    for reply in drawn:
        if reason := reason_to_drop(reply, known, wanted, max_resemblance):
            counts[f'dropped_rewrite_{reason}'] += 1
        else:
            texts.append(reply.text)
    return texts


def best(samples: Sequence[tuple[str, float | None]], min_gain: float, counts: Counter) -> tuple[str, float] | None:
    """Return the text with the largest gain, and the gain in nats; None if no gain is at least `min_gain`.

    Texts with equal gains are ordered by a hash. Every other text is counted under the reason for dropping it.

    Args:
      samples: (text, gain) pairs. The gain is None if the text is too long to score.
      min_gain: the smallest acceptable gain, in nats.
      counts: receives the counts of dropped texts.
    """
    ranked = sorted((gain, digest(text), text) for text, gain in samples if gain is not None)
    better = [(text, gain) for gain, _, text in ranked if gain >= min_gain]
    counts['dropped_rewrite_longer_than_a_row'] += len(samples) - len(ranked)
    counts['dropped_rewrite_not_better'] += len(ranked) - len(better)
    counts['dropped_rewrite_not_the_best'] += len(better[:-1])
    return better[-1] if better else None
