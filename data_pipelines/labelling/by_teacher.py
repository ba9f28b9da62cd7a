"""Labels follow-up turns with the teacher or the policy.

A local model is not asked for a label. Instead, the model reads one prompt per label, which shows what users say when
that label applies. A turn gets the label whose prompt makes the turn most likely. This method, called a noisy
channel (arXiv 2108.04106), suits small models. All labels have equal priors. The prompts contain no conversation text,
so no user can steer the teacher. Because a prompt is the same for all turns, many turns can be scored after it at once.

An endpoint is asked for JSON with a label, a confidence, and a quote from the turn.
"""

import re
from collections.abc import Sequence

from scipy.special import softmax

from data_pipelines.core.passes import in_blocks
from data_pipelines.core.stage import Task
from data_pipelines.core.turns import to_messages
from data_pipelines.labelling.labels import LABELS, Judgement, UserTurn, judge, opening, pieces, sentences
from data_pipelines.teacher.endpoint import Question, answers
from data_pipelines.teacher.generation import likelihoods
from data_pipelines.teacher.prompts import render, render_turns
from rlhi_jax.io.files import digest
from rlhi_jax.scoring.candidates import Candidates

PIECES = 32  # number of texts that are scored together
_UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff'  # Thai, Lao, Burmese, Khmer, kana, Han
_WORD = re.compile(rf'[{_UNSPACED}]|[^\W{_UNSPACED}]+')  # in scripts without spaces, each character is a word
ANSWER = dict(  # in the subset of JSON schema that OpenAI's strict mode accepts
    type='object',
    properties=dict(
        label=dict(type='string', enum=list(LABELS)),
        confidence=dict(type='number', minimum=0, maximum=1),
        quote=dict(type='string'),
    ),
    required=['label', 'confidence', 'quote'],
    additionalProperties=False,
)


def by_likelihood(task: Task, turns: Sequence[UserTurn], model_path: str) -> dict[str, Judgement | None]:
    """Return a local model's judgements, keyed by turn id.

    A turn's judgement is None if the opening of the turn does not fit in a row of `config.teacher.row_tokens` tokens.
    """
    texts = pieces(turns)
    blocks = {digest(block): block for block in in_blocks(texts, PIECES)}
    questions = [
        Candidates(f'{label} {name}', to_messages(render_turns('follow_up', label=label)), '', block)
        for label in LABELS
        for name, block in blocks.items()
    ]
    scores = likelihoods(task, questions, model_path)
    by_label = [[score for name in blocks for score in scores[f'{label} {name}']] for label in LABELS]
    posteriors = {text: posterior(scores_of_text) for text, *scores_of_text in zip(texts, *by_label, strict=True)}

    def judged(turn: UserTurn) -> Judgement | None:
        of_turn = posteriors[opening(turn)]
        if of_turn is None:
            return None
        label = max(of_turn, key=of_turn.get)
        weights = {sentence: (posteriors[sentence] or of_turn)[label] for sentence in sentences(opening(turn))}
        return judge(turn, label, of_turn[label], weights)

    return {turn.id: judged(turn) for turn in turns}


def posterior(scores: Sequence[float | None]) -> dict[str, float] | None:
    """Return p(label | turn), keyed by label, or None if a score is missing.

    Args:
      scores: log p(turn | label) in nats, in the order of LABELS.

    >>> {label: round(p, 2) for label, p in posterior([-2.0, -9.0, -9.0, -2.0, -9.0, -9.0, -9.0]).items() if p > 0.1}
    {'reattempt_with_feedback': 0.5, 'new_request': 0.5}
    """
    if None in scores:
        return None
    return dict(zip(LABELS, softmax(scores).tolist(), strict=True))


def by_answer(task: Task, turns: Sequence[UserTurn]) -> dict[str, Judgement | None]:
    """Return an endpoint's judgements, keyed by turn id. The judgement of a turn without a valid answer is None."""
    by_id = {turn.id: turn for turn in turns}
    questions = [
        Question(
            turn.id,
            (('user', render('label_follow_up', labels=LABELS, turn=turn)),),
            ANSWER,
            tuple(filter(None, [turn.author])),
        )
        for turn in turns
    ]
    values = answers(task, questions, lambda question, value: quotes(value['quote'], by_id[question.id].text))
    return {turn: value and Judgement(**value) for turn, value in values.items()}


def quotes(quote: str, text: str) -> bool:
    """Whether a quote occurs in a text and includes at least one whole word of the text.

    If the text has no words, the quote must occur in the text and must not be blank.

    >>> quotes('Too long', 'Too long!'), quotes('To', 'Too long!'), quotes('!', 'Too long!'), quotes('?', '??')
    (True, False, False, True)
    """
    words = set(_WORD.findall(text))
    has_content = not words.isdisjoint(_WORD.findall(quote)) if words else bool(quote.strip())
    return has_content and quote in text
