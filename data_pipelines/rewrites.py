"""Rewrite replies according to the feedback that users gave on them (arXiv 2509.25137, section 3).

    python -m data_pipelines.rewrites --config=configs/NAME.py

A rewrite is made in four steps. Each step is done for all turns before the next step starts:

1. If `config.rewrites.regenerate` is set, the policy regenerates the logged reply, with which the user was unhappy. The
   rejected reply of a pair then comes from the policy itself. If the policy is its own teacher, it has written both
   replies.
2. The feedback is about the logged reply, so this step checks whether it also applies to the regenerated reply. The
   log-probability of the feedback may be at most `config.rewrites.max_feedback_drop` nats lower after the regenerated
   reply than after the logged reply. The teacher computes these log-probabilities. If the teacher is an endpoint, the
   policy computes them instead (see `rlhi_jax.config.likelihood_path`).
3. The teacher responds to the feedback `config.rewrites.samples` times. It sees the conversation with the reply and
   the feedback or, if `config.rewrites.shows_reply` is not set, the request and the feedback in one turn.
   `data_pipelines.preferences.acceptance` then drops samples that no model should learn from.
4. The rewrite is the sample with the largest gain, which must be at least `config.rewrites.min_gain`. The gain is the
   sample's log-probability after the teacher's prompt minus its log-probability after the same prompt without the
   feedback, in nats. If the prompt shows the reply, a generic complaint takes the place of the feedback. The gain is
   computed by the same model as in step 2 and stored in the record. (A rewrite cannot be judged by whether it makes the
   feedback less likely: "say more about history" becomes more likely after a reply that does say more about history.)

The control `config.rewrites.from_scratch` hides the feedback from the teacher. The teacher only answers the request
again, and the samples go through the same filters. The gain still depends on the feedback, but it has no influence if
there is only one sample and `min_gain` is far below 0. The teacher never sees the persona.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.histories import author_id, follow_ups_with_personas
from data_pipelines.core.inputs import input_digest
from data_pipelines.core.passes import at_most, in_blocks, in_passes
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import MINED_SPLITS, FollowUp, Rewrite
from data_pipelines.core.turns import request_index, to_messages, to_turns
from data_pipelines.labelling.labels import MAX_CHARACTERS
from data_pipelines.preferences.acceptance import accepted, best
from data_pipelines.reports.statistics import of_rewrites
from data_pipelines.teacher.endpoint import spending
from data_pipelines.teacher.generation import generate, likelihoods, model_identity, rises
from data_pipelines.teacher.prompts import prompt_digest, render
from data_pipelines.teacher.rewriting import instruction, prompt_digests
from data_pipelines.text import languages
from rlhi_jax.config import likelihood_path, require, settings_identity, teacher_path
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Prompt, Turns
from rlhi_jax.scoring.candidates import Candidates
from rlhi_jax.tokenizers.template import Context

DISLIKE = 'I do not like this answer.'  # feedback without a reason
BLOCK = 256  # turns that a model processes together


class Case(NamedTuple):
    """A feedback turn, with the results of the steps so far.

    Attributes:
      turn: the record of the feedback turn.
      turns: the conversation, ending with the request.
      persona: the persona of the request's author at the time of the request.
      next_reply: the reply after the feedback; '' if the conversation ends with the feedback.
      original: the reply to improve; '' before the first step.
      samples: the rewrites that have passed all steps so far.
      gain: the gain, in nats, of the rewrite that the last step chooses; 0 before the last step.
    """

    turn: FollowUp
    turns: Turns
    persona: str = ''
    next_reply: str = ''
    original: str = ''
    samples: Sequence[str] = ()
    gain: float = 0.0

    @property
    def name(self) -> str:
        return self.turn['id']

    @property
    def request(self) -> str:
        return self.turns[-1][1]

    @property
    def feedback(self) -> str:
        return self.turn['follow_up']


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    return dict(
        inputs=[input_digest(config, key) for key in ('conversations', 'follow_ups', 'personas')],
        policy=model_identity(config, config.model.path),
        teacher=model_identity(config, teacher_path(config)),
        prompts=[prompt_digest('applies'), *prompt_digests(config.rewrites)],
        dislike=DISLIKE,
        settings=settings_identity(config, 'rewrites') | dict(row_tokens=config.teacher.row_tokens),
        sampler=settings_identity(config, 'sampler'),
        sampler_sees_persona=config.sampler_sees_persona,
        seed=config.seed,
    )


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter()
    steps = [_originals, *([_applicable] if task.config.rewrites.regenerate else []), _drawn, _best]
    feedback = functools.partial(_feedback, task.config)
    cases = at_most(task.config.rewrites.max_turns, feedback, lambda case: digest(case.name), 'dropped_over_max_turns')
    rewritten = in_passes(cases, [functools.partial(step, task) for step in steps], counts)
    return task.write(_records(task, rewritten, counts), counts)


def _feedback(config: ConfigDict, counts: Counter) -> Iterator[Case]:
    """Yield a case for each feedback turn that should get a rewrite. Other turns are skipped and counted by reason."""
    for conversation, turn, persona in follow_ups_with_personas(config):
        counts['follow_ups_read'] += 1
        if turn['split'] not in MINED_SPLITS:
            counts['dropped_test_split'] += 1
        elif not turn['mined']:
            counts['dropped_no_feedback'] += 1
        elif persona is None:
            counts['dropped_persona_would_know_it'] += 1
        else:
            counts['feedback_turns'] += 1
            turns, feedback_at = to_turns(conversation['messages']), turn['turn_index']
            next_reply = ''.join(content for _, content in turns[feedback_at + 1 : feedback_at + 2])
            yield Case(turn, turns[: request_index(feedback_at) + 1], persona, next_reply)


def _records(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Rewrite]:
    for case in cases:
        (text,) = case.samples
        counts[f'kept_{case.turn["split"]}'] += 1
        yield Rewrite(
            id=case.name,
            split=case.turn['split'],
            user_id=case.turn['user_id'],
            persona=case.persona,
            messages=to_messages(case.turns),
            feedback=case.feedback,
            original=case.original,
            rewrite=text,
            gain=case.gain,
        )
    counts.update(spending(task))


def _originals(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield each case with the reply to improve: the logged reply or the policy's own reply."""
    if not task.config.rewrites.regenerate:
        yield from (case._replace(original=case.turn['reply']) for case in cases)
        return
    sees_persona = task.config.sampler_sees_persona
    for block in in_blocks(cases, BLOCK):
        prompts = [
            Prompt(f'original {case.name}', case.turns, Context(persona=case.persona if sees_persona else ''))
            for case in block
        ]
        replies = generate(task, task.config.model.path, prompts)
        for case in block:
            reply = next(iter(replies[f'original {case.name}']), None)
            if reply and reply.finished and reply.text:
                yield case._replace(original=reply.text)
            else:
                reason = 'does_not_fit' if not reply else 'empty' if reply.finished else 'cut_off'
                counts[f'dropped_original_{reason}'] += 1


def _applicable(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield all cases except those whose feedback is much less likely after the new reply than after the logged one."""
    for block in in_blocks(cases, BLOCK):
        questions = []
        for case in block:
            for side, reply in (('logged', case.turn['reply']), ('new', case.original)):
                text = render('applies', request=case.request, reply=reply)
                feedback = case.feedback[:MAX_CHARACTERS]
                questions.append(Candidates(f'{side} {case.name}', to_messages([('user', text)]), '', [feedback]))
        log_probs = likelihoods(task, questions, likelihood_path(task.config))
        for case in block:
            (logged,), (new,) = log_probs[f'logged {case.name}'], log_probs[f'new {case.name}']
            if logged is None or new is None:
                counts['dropped_longer_than_a_row'] += 1
            elif logged - new > task.config.rewrites.max_feedback_drop:
                counts['dropped_feedback_does_not_apply'] += 1
            else:
                yield case


def _drawn(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield each case with the sampled rewrites that pass the filters (possibly none).

    Cases for which the teacher gave no sample are dropped and counted.
    """
    settings = task.config.rewrites
    for block in in_blocks(cases, BLOCK):
        prompts = []
        for case in block:
            asked = _asked(case, '' if settings.from_scratch else case.feedback, settings)
            authors = (author_id(case.turn['user_id'], case.turn['conversation']),)
            prompts.append(
                Prompt(
                    f'rewrite {case.name}',
                    (*case.turns[:-1], *asked),
                    samples=settings.samples,
                    keep=len(asked),
                    authors=authors,
                )
            )
        replies = generate(task, teacher_path(task.config), prompts)
        for case in block:
            if drawn := replies[f'rewrite {case.name}']:
                counts['rewrites_drawn'] += len(drawn)
                yield case._replace(samples=accepted(drawn, *_rules(case), settings.max_resemblance, counts))
            else:
                counts['dropped_too_long_or_refused'] += 1


def _asked(case: Case, feedback: str, settings: ConfigDict) -> Turns:
    return instruction(case.request, case.original, feedback, settings)


def _rules(case: Case) -> tuple[list[str], frozenset[str]]:
    """Return the texts that a sample must not copy, and the languages that it may be in."""
    known = [case.original, *(text for _, text in case.turns), case.turn['reply'], case.feedback, case.next_reply]
    return known, languages.wanted(case.request, case.turn['reply'], case.feedback)


def _best(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield each case with only the sample that has the largest gain. Drop cases without a good enough sample."""
    for block in in_blocks(cases, BLOCK):
        gains = _gains(task, [case for case in block if case.samples])
        for case in block:
            samples = list(zip(case.samples, gains.get(case.name, ()), strict=True))
            if rewrite := best(samples, task.config.rewrites.min_gain, counts):
                yield case._replace(samples=rewrite[:1], gain=rewrite[1])
            else:
                counts['dropped_no_rewrite_left'] += 1


def _gains(task: Task, cases: Sequence[Case]) -> dict[str, list[float | None]]:
    """Return how much more likely the feedback makes each sample, in nats, keyed by case id (see step 4 above).

    The prompts hold only the last request of a conversation. A gain is None if the sample and the text before it do not
    fit in a row of `config.teacher.row_tokens` tokens. All samples of a case are leaves of one tree after the prompt
    with the feedback, and of another tree after the prompt without it.
    """
    settings = task.config.rewrites
    neutral = DISLIKE if settings.shows_reply else ''

    def prompt(case: Case, side: str, feedback: str) -> Candidates:
        messages = to_messages(_asked(case, feedback, settings))
        return Candidates(f'gain by {side} {case.name}', messages, '', case.samples)

    both = [(prompt(case, 'feedback', case.feedback), prompt(case, 'no feedback', neutral)) for case in cases]
    gains = rises(task, both, likelihood_path(task.config))
    return dict(zip((case.name for case in cases), gains, strict=True))


STAGE = Stage(
    name='rewrites',
    version=3,
    work=_work,
    output='data.rewrites',
    identity=_identity,
    files={RECORDS: KEPT},
    steps=(
        Step('follow-ups', read=('follow_ups_read',)),
        Step('rewrites drawn', read=('rewrites_drawn',), dropped=('dropped_rewrite_',)),
    ),
    summary=of_rewrites,
)

if __name__ == '__main__':
    STAGE.main()
