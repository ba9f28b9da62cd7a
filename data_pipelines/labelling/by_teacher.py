"""Labels of follow-ups by the teacher.

A local teacher is not asked for a label: it is shown what users of each kind say, and the kind under which it finds the
turn likeliest wins (a noisy channel, arXiv 2108.04106, which suits small models); all kinds count as equally frequent.
Its prompts hold no part of the conversation, so no text of a user can steer it, and one tree a kind scores many turns.
An endpoint is asked for JSON: a label, how sure it is, and a quote, which must be words of the turn.
"""

import re
from collections.abc import Sequence

from scipy.special import softmax

from data_pipelines.core.stage import Task, in_blocks
from data_pipelines.labelling.labels import LABELS, Judgement, Turn, judge, opening, pieces, sentences
from data_pipelines.teacher.endpoint import Question, answers
from data_pipelines.teacher.generation import likelihoods
from data_pipelines.teacher.prompts import render, render_turns
from rlhi_jax.io.files import digest
from rlhi_jax.scoring.candidates import Candidates

TURNS = 32  # of one tree
_UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff'  # Thai to Khmer, kana, Chinese
_WORD = re.compile(rf'[{_UNSPACED}]|[^\W{_UNSPACED}]+')  # a letter, in scripts without spaces
ANSWER = dict(  # as OpenAI's strict mode takes it
    type='object',
    properties=dict(
        label=dict(type='string', enum=list(LABELS)),
        confidence=dict(type='number', minimum=0, maximum=1),
        quote=dict(type='string'),
    ),
    required=['label', 'confidence', 'quote'],
    additionalProperties=False,
)


def by_likelihood(task: Task, turns: Sequence[Turn]) -> dict[str, Judgement | None]:
    """Each turn's judgement by its id; None for one that is longer than a row."""
    texts = pieces(turns)
    blocks = {digest(block): block for block in in_blocks(texts, TURNS)}
    questions = [
        Candidates(
            f'{label} {name}',
            [dict(role=role, content=content) for role, content in render_turns('follow_up', label=label)],
            '',
            block,
        )
        for label in LABELS
        for name, block in blocks.items()
    ]
    scores = likelihoods(task, questions)
    by_label = [[score for name in blocks for score in scores[f'{label} {name}']] for label in LABELS]
    posteriors = {text: posterior(own) for text, *own in zip(texts, *by_label, strict=True)}

    def judged(turn: Turn) -> Judgement | None:
        found = posteriors[opening(turn)]
        if found is None:
            return None
        label = max(found, key=found.get)
        weights = {sentence: (posteriors[sentence] or found)[label] for sentence in sentences(opening(turn))}
        return judge(turn, label, found[label], weights)

    return {turn.id: judged(turn) for turn in turns}


def posterior(scores: Sequence[float | None]) -> dict[str, float] | None:
    """p(label | turn) from log p(turn | label) in nats, in the order of LABELS; None if one is missing.

    >>> {label: round(p, 2) for label, p in posterior([-2.0, -9.0, -9.0, -2.0, -9.0, -9.0, -9.0]).items() if p > 0.1}
    {'reattempt_with_feedback': 0.5, 'new_request': 0.5}
    """
    if None in scores:
        return None
    return dict(zip(LABELS, softmax(scores).tolist(), strict=True))


def by_answer(task: Task, turns: Sequence[Turn]) -> dict[str, Judgement | None]:
    """Each turn's judgement by its id; None for one that the endpoint gave no valid answer on."""
    by_id = {turn.id: turn for turn in turns}
    questions = [
        Question(turn.id, (('user', render('label_follow_up', labels=LABELS, turn=turn)),), ANSWER) for turn in turns
    ]
    found = answers(task, questions, lambda question, value: quotes(value['quote'], by_id[question.id].text))
    return {name: value and Judgement(**value) for name, value in found.items()}


def quotes(quote: str, text: str) -> bool:
    """Whether a quote stands in a text with at least one whole word of it; if it has no words, with anything.

    >>> quotes('Too long', 'Too long!'), quotes('To', 'Too long!'), quotes('!', 'Too long!'), quotes('?', '??')
    (True, False, False, True)
    """
    words = set(_WORD.findall(text))
    said = not words.isdisjoint(_WORD.findall(quote)) if words else bool(quote.strip())
    return said and quote in text
