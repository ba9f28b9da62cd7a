"""Checks whether the teacher can be reached, and how well it answers questions with known answers."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from data_pipelines.checks.cost import Asked, asked_of, in_words, lengths_of, work_of_teacher
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.sample import Sample
from data_pipelines.core.stage import Task
from data_pipelines.labelling.by_teacher import by_answer
from data_pipelines.labelling.labels import AGAIN, FEEDBACK, UserTurn, turns_after_replies
from data_pipelines.persona.audit import fault
from data_pipelines.persona.remarks import sentences_about
from data_pipelines.teacher.endpoint import spending
from data_pipelines.teacher.generation import generate
from data_pipelines.teacher.recorded import SUFFIX
from rlhi_jax.config import is_endpoint, teacher_path
from rlhi_jax.cost.memory import num_parameters
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Prompt

T = TypeVar('T')
SLOW = 8.0  # seconds for all built-in questions; a teacher that needs longer is slow
PATIENCE = 60.0  # seconds to wait for an answer
SERIAL = 2.0  # seconds for the first answer; a teacher that needs longer is asked one question at a time
STRONG = 10**9  # parameters; smaller models rarely follow feedback (tests/benchmarks/README.md)
MIN_LABELS, MIN_WISHES = 8, 3  # with fewer right answers, most mined data would be wrong
_OTHER_LABELLER = "set config.follow_ups.labeller='policy'"

_REQUEST = 'How do I keep bread fresh?'
_REPLY = (
    'There are many ways to keep bread fresh. You can keep it in a paper bag at room temperature for two days, in a '
    'bread box for three, or slice it and freeze it for a month. A fridge makes it go stale faster.'
)
FOLLOW_UPS = {  # what a user says after the reply above, and its label
    'That is too long. Just tell me the best way.': FEEDBACK,
    'Please give me that as a numbered list instead.': FEEDBACK,
    'You did not say how to thaw it. Write it again and include that.': FEEDBACK,
    'No, I meant bread dough, not baked bread. Answer that instead.': FEEDBACK,
    'Try again.': AGAIN,
    'Can you answer that once more?': AGAIN,
    'Why does the fridge make it go stale faster?': 'continuation',
    'And how long does frozen bread last after thawing?': 'continuation',
    'What is the capital of Norway?': 'new_request',
    'Now write a poem about the sea.': 'new_request',
    'Thanks, that is exactly what I needed!': 'positive_feedback',
    'Great, that helps a lot.': 'positive_feedback',
}
WISHES = (  # complaints, each of which states one wish
    'That is too long. Please keep it short.',
    'Please use bullet points next time.',
    'Explain it in simple words, I am a beginner.',
    'Give me an example, please.',
    'Please write numbered steps next time.',
    'This is too formal. Use a casual tone.',
)


def check_teacher(config: ConfigDict, sample: Sample, findings: Findings) -> None:
    """Check the teacher, estimate what its answers will cost, and add the results to the findings.

    A local model is only opened. If recorded answers are replayed, nothing is asked. Any other teacher is asked 12
    questions about follow-ups (if it labels them), 6 about users' wishes, and one about the longest follow-up in the
    sample.

    Args:
      config: the loop's config.
      sample: the sample of the raw data.
      findings: receives the facts and problems.
    """
    path = teacher_path(config)
    try:
        if not is_endpoint(path):
            _check_folder(config, path, findings)
            return
        if config.teacher.cache.endswith(SUFFIX):
            findings.fact(
                f'Teacher: its recorded answers in {config.teacher.cache} are replayed, and nothing is asked.'
            )
            return
        with tempfile.TemporaryDirectory() as folder:
            task = Task(_impatient(config), Path(folder), {}, 'check')
            try:
                labels = _ask_for_labels(task, findings) if config.follow_ups.labeller == 'teacher' else None
                _estimate(config, sample, labels, _ask_for_wishes(task, findings), findings)
                _ask_the_longest(task, sample, findings)
            finally:
                task.close()
    except UserError as error:
        findings.stop(str(error))


def _check_folder(config: ConfigDict, path: str, findings: Findings) -> None:
    parameters = num_parameters(open_model(path).spec)
    whose = 'The teacher' if config.teacher.path else 'The teacher is the policy itself, which'
    findings.fact(f'{whose} has {parameters / 1e6:,.0f} million parameters ({path}).')
    if parameters < STRONG:
        findings.warn(
            f'the teacher {path} has only {parameters / 1e6:,.0f} million parameters, and models of this size rarely '
            'follow feedback when they rewrite a reply: set config.teacher.path to a stronger model'
        )


def _impatient(config: ConfigDict) -> ConfigDict:
    """Return a copy of the config with a short timeout and no retries, so that an unreachable teacher is noticed soon.

    The copy also turns off the cache, because tokens and seconds can only be measured on new answers.
    """
    config = config.copy_and_resolve_references()
    config.teacher.cache = ''
    config.teacher.retries = 0
    config.teacher.attempts = config.personas.samples = 1
    config.teacher.timeout = min(config.teacher.timeout, PATIENCE)
    return config


def _ask_for_labels(task: Task, findings: Findings) -> Asked:
    """Ask the teacher to label the built-in follow-ups, add its score to the findings, and return the cost."""
    name = task.config.teacher.model
    turns = [UserTurn(text, _REQUEST, _REPLY, text) for text in FOLLOW_UPS]
    judged, asked = _measured(task, turns, [_REQUEST + _REPLY + text for text in FOLLOW_UPS], by_answer)
    right = sum(bool(judged[text]) and judged[text].label == label for text, label in FOLLOW_UPS.items())
    complaints = [text for text, label in FOLLOW_UPS.items() if label == FEEDBACK]
    noticed = sum(bool(judged[text]) and judged[text].label == FEEDBACK for text in complaints)
    findings.fact(
        f'Teacher {name}: {right} of {len(FOLLOW_UPS)} labels right, {noticed} of {len(complaints)} complaints '
        f'noticed, {asked.seconds / len(FOLLOW_UPS):.2f} s per label.'
    )
    if noticed < len(complaints) / 2:
        labels = sorted({judgement.label for judgement in judged.values() if judgement})
        findings.stop(
            f'the teacher {name} notices {noticed} of {len(complaints)} obvious complaints (its labels: '
            f'{", ".join(labels) or "no valid answer"}), so almost nothing would be mined: {_OTHER_LABELLER}'
        )
    elif right < MIN_LABELS:
        findings.warn(
            f'the teacher {name} labels {right} of {len(FOLLOW_UPS)} simple follow-ups correctly: {_OTHER_LABELLER}'
        )
    return asked


def _ask_for_wishes(task: Task, findings: Findings) -> Asked:
    """Ask the teacher to state the wishes in built-in complaints; add its score to the findings and return the cost."""
    name, audit = task.config.teacher.model, task.config.personas.audit
    sentences, asked = _measured(task, WISHES, WISHES, sentences_about)
    stated = sum(any(not fault(text, wish, '', audit) for text in texts) for wish, texts in sentences.items())
    findings.fact(
        f'Teacher {name}: {stated} of {len(WISHES)} wishes stated, {asked.seconds / len(WISHES):.2f} s per wish.'
    )
    if stated < MIN_WISHES:
        findings.warn(
            f'the teacher {name} states {stated} of {len(WISHES)} simple wishes, so most users would have no persona: '
            'use a stronger model'
        )
    return asked


def _measured(task: Task, questions: Sequence[T], texts: Sequence[str], ask: Callable) -> tuple[dict, Asked]:
    """Ask the teacher questions, and return the answers and their cost.

    The first question is asked alone. If its answer takes long, the other questions are asked one at a time, because a
    slow server would keep working on parallel requests even after they time out.

    Args:
      task: the task.
      questions: the questions.
      texts: the user text in each question.
      ask: ask(task, questions) returns the answers.
    """
    before, start = spending(task), time.monotonic()
    ask(task, questions[:1])
    if time.monotonic() - start > SERIAL:
        task.config.teacher.concurrency = 1
    answers = ask(task, questions)
    seconds, after = time.monotonic() - start, spending(task)
    tokens = [after[name] - before[name] for name in ('teacher_tokens_in', 'teacher_tokens_out')]
    return answers, Asked(len(questions), sum(map(len, texts)) / len(texts), *tokens, seconds)


def _estimate(config: ConfigDict, sample: Sample, labels: Asked | None, sentences: Asked, findings: Findings) -> None:
    """Add the teacher's estimated cost in tokens, money and time to the findings. Warn if the teacher is slow."""
    follow_ups = sample.follow_ups * sample.total / sample.counts['records_read']
    work = work_of_teacher(config, follow_ups, lengths_of(sample), labels, sentences)
    for line in in_words(work, follow_ups, config.teacher.price_in, config.teacher.price_out):
        findings.fact(line)
    asked = asked_of(labels, sentences)
    if (seconds := sum(each.seconds for each in asked)) > SLOW:
        findings.warn(
            f'the teacher takes {seconds:.0f} s for {sum(each.questions for each in asked)} short questions and would '
            f'take {sum(each.hours for each in work):,.1f} hours for this data: use a faster server'
        )


def _ask_the_longest(task: Task, sample: Sample, findings: Findings) -> None:
    """Warn if the teacher gives no reply to the longest follow-up in the sample."""
    follow_ups = (turn for each in sample.conversations for _, turn in turns_after_replies(each))
    longest = max(follow_ups, key=_size, default=None)
    if longest is None:
        return
    texts = (('user', longest.request), ('assistant', longest.reply), ('user', longest.text))
    prompt = Prompt('longest', texts, keep=len(texts))
    if not generate(task, task.config.teacher.path, [prompt])['longest']:
        findings.warn(
            f'the teacher {task.config.teacher.model} gives no reply to the longest follow-up in the sample '
            f'({_size(longest):,} characters with the exchange before it): start the server with a longer context'
        )


def _size(turn: UserTurn) -> int:
    """Return the number of characters in a follow-up and in the exchange before it."""
    return len(turn.request) + len(turn.reply) + len(turn.text)
