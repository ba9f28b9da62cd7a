"""Gets replies to prompts, and judgements in JSON, from a teacher behind an OpenAI-compatible endpoint.

`config.teacher.path` is the endpoint's base URL, such as http://localhost:8000/v1, and `config.teacher.model` is the
endpoint's name for the model. `config.teacher.key_variable` names the environment variable that contains the API key.
Many requests are sent at the same time, and the result does not depend on the order of the answers. Every answer is
written to the stage's journal, with its token count, as soon as it arrives. If `config.teacher.cache` is set, the
answer is also written to that file, with the authors of the text that it was made from
(`data_pipelines.teacher.cache`). If the file contains recorded answers (`data_pipelines.teacher.recorded`), nothing is
sent.
"""

import asyncio
import contextlib
import importlib.util
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.journal import Journal
from data_pipelines.core.records import Message
from data_pipelines.core.stage import Task
from data_pipelines.core.turns import to_messages
from data_pipelines.teacher.cache import AnswerCache
from data_pipelines.teacher.recorded import SUFFIX, RecordedAnswers
from data_pipelines.text.control_tokens import defused
from rlhi_jax.config import is_endpoint, settings_identity
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.io.progress import Progress
from rlhi_jax.sampling.generator import Prompt, Reply, Turns

if TYPE_CHECKING:
    from data_pipelines.teacher.completions import Completion

Messages = list[Message]
Key = tuple[str, str, int]  # 'reply' or 'answer'; id of the prompt or question; number of the sample or attempt


class Question(NamedTuple):
    """A question to the teacher.

    Attributes:
      id: the question's id.
      turns: the turns to send; the last one is a user turn.
      schema: a JSON schema for the answer.
      authors: the ids of the authors of the text in the turns; empty if they are unknown.
    """

    id: str
    turns: Turns
    schema: dict[str, Any]
    authors: tuple[str, ...] = ()


def identity(config: ConfigDict) -> dict[str, Any]:
    """Return the settings that we know to affect an endpoint's answers: the model name, sampling settings and seed."""
    teacher, sampler = config.teacher, config.sampler
    sampled = dict(temperature=sampler.temperature, top_p=sampler.top_p, new_tokens=sampler.new_tokens)
    sampled |= _processors(config)
    judged = dict(temperature=teacher.temperature, attempts=teacher.attempts)
    return dict(endpoint=teacher.model, sampled=sampled, judged=judged, seed=config.seed)


def draw(task: Task, prompts: Sequence[Prompt]) -> None:
    """Sample the replies that are missing from the journal, and add them to it.

    The settings are those in `config.sampler`. The persona is placed where the policy would see it, at the start of the
    first user turn. If the endpoint rejects a prompt as too long, the prompt is sent again without its oldest
    exchanges. A prompt has no replies if its last `keep` turns do not fit, if the endpoint refuses its content, or if
    every attempt fails.

    Raises:
      UserError: the endpoint refuses all requests or does not answer, or the budget is spent. All answers so far are in
        the journal.
    """

    async def settle(teacher: '_Teacher', prompt: Prompt) -> None:
        for key in keys(prompt):
            await teacher.ask(key, _versions(prompt), task.config.sampler.temperature, authors=prompt.authors)

    _settle_all(task, prompts, settle, 'prompts')


def keys(prompt: Prompt) -> list[Key]:
    """Return the journal keys of a prompt's replies.

    Each key's entry contains `text` (None if there is no reply) and `finished`.
    """
    return [('reply', prompt.id, sample) for sample in range(prompt.samples)]


def cached_replies(config: ConfigDict, prompts: Sequence[Prompt]) -> dict[str, list[Reply]]:
    """Return the replies in `config.teacher.cache` to each prompt, keyed by prompt id.

    Nothing is sent to the endpoint, and a missing cache is not created.
    """
    replies: dict[str, list[Reply]] = {prompt.id: [] for prompt in prompts}
    if not config.teacher.cache or not Path(config.teacher.cache).exists():
        return replies
    with contextlib.closing(_answers_at(config.teacher.cache)) as cache:
        for prompt in prompts:
            for key in keys(prompt):
                if found := next(filter(None, map(cache.get, _names(config, key, prompt))), None):
                    replies[prompt.id].append(Reply(prompt.id, key[2], found[0].strip(), found[1]))
    return replies


def _answers_at(path: str) -> AnswerCache | RecordedAnswers:
    """Open the file at `config.teacher.cache`: recorded answers if the path ends in .jsonl, and a cache otherwise."""
    return RecordedAnswers(path) if path.endswith(SUFFIX) else AnswerCache(path)


def add_authors(config: ConfigDict, prompts: Sequence[Prompt]) -> None:
    """Add the prompts' authors to any replies that `config.teacher.cache` already contains.

    This is needed if several authors share a prompt: once its replies are in the journal, they are not looked up in the
    cache again. A missing cache is not created, and a file of recorded answers is not changed.
    """
    path = config.teacher.cache
    if not path or path.endswith(SUFFIX) or not Path(path).exists():
        return
    with contextlib.closing(AnswerCache(path)) as cache:
        for prompt in prompts:
            names = (name for key in keys(prompt) for name in _names(config, key, prompt))
            cache.add_authors(list(names), prompt.authors)


def _names(config: ConfigDict, key: Key, prompt: Prompt) -> Iterator[str]:
    """Yield the digest of each request that may be sent for a prompt: one per version (see `_versions`)."""
    for messages in _versions(prompt):
        yield digest(_request(config, key, messages, config.sampler.temperature))


def answers(
    task: Task, questions: Sequence[Question], accept: Callable[[Question, Any], bool]
) -> dict[str, Any | None]:
    """Ask the teacher questions, and return the answers, keyed by question id.

    An answer is a JSON object that fits the question's schema and passes `accept`, or None if no attempt gave such an
    object.

    The schema is stated in the last message and in `response_format`. The first attempt is sampled at
    `config.teacher.temperature`. After an unacceptable answer, the question is asked again at
    `config.sampler.temperature`, with a new seed each time. A question is asked at most `config.teacher.attempts` times
    in all.

    Args:
      task: the stage's task. Its `made_from` (the inputs and settings in the manifest) must cover the questions and
        everything that `accept` depends on.
      accept: a pure function that returns whether an answer to a question is acceptable. When interrupted work resumes,
        it is called with the same answers again.

    Raises:
      UserError: the endpoint refuses all requests or does not answer, or the budget is spent. All answers so far are in
        the journal.
    """
    values: dict[str, Any | None] = {}
    config = task.config

    async def settle(teacher: '_Teacher', question: Question) -> None:
        from data_pipelines.teacher.completions import parse_json

        values[question.id] = None
        temperature = config.teacher.temperature
        for attempt in range(config.teacher.attempts):
            key = ('answer', question.id, attempt)
            answer = await teacher.ask(key, [_messages(question)], temperature, question.schema, question.authors)
            if answer.text is None:  # the endpoint would refuse further attempts too
                return
            value = parse_json(answer.text, question.schema)
            if value is not None and accept(question, value):
                values[question.id] = value
                return
            temperature = config.sampler.temperature

    answered = [question for question in questions if ('answer', question.id, 0) in task.journal]
    new = [question for question in questions if ('answer', question.id, 0) not in task.journal]
    _settle_all(task, answered + new, settle, 'questions', answered=len(answered))
    return {question.id: values[question.id] for question in questions}


def spending(task: Task) -> dict[str, int]:
    """Return the cost of a stage's answers so far, in tokens and in money.

    Money is in millionths of the currency of `config.teacher.price_in` and `price_out`. Interrupted runs are included,
    and answers from the cache are free. Answers lost to a timeout or a killed process are not counted, although the
    endpoint charges for them. The result is empty if the teacher is not an endpoint.
    """
    teacher = task.config.teacher
    if not is_endpoint(teacher.path):
        return {}
    tokens_in, tokens_out = _tokens(task.journal)
    cost = round(tokens_in * teacher.price_in + tokens_out * teacher.price_out)
    return dict(teacher_tokens_in=tokens_in, teacher_tokens_out=tokens_out, teacher_cost_millionths=cost)


def _tokens(journal: Journal) -> tuple[int, int]:
    return journal.total('tokens_in'), journal.total('tokens_out')


def _settle_all(
    task: Task,
    items: Sequence[Any],
    settle: Callable[['_Teacher', Any], Awaitable[None]],
    unit: str,
    *,
    answered: int = 0,
) -> None:
    """Call `settle` on all items, several at a time.

    After a failure, no new calls are started, but those in progress are finished so that their answers are kept. The
    first `answered` items have answers in the journal.
    """
    if not items:  # later passes of a stage find all answers in the journal
        return
    if any(importlib.util.find_spec(name) is None for name in ('openai', 'jsonschema')):
        raise UserError(
            "config.teacher.path is an endpoint: install the packages for endpoints with `pip install -e '.[endpoint]'`"
        )
    from data_pipelines.teacher.completions import Endpoint

    pending = deque(items)

    async def work(teacher: '_Teacher', progress: Progress) -> None:
        while pending:
            try:
                await settle(teacher, pending.popleft())
            except BaseException:
                pending.clear()
                raise
            teacher.settled += 1
            progress.update(teacher.settled, f'{teacher.spent:,} tokens')

    async def run() -> None:
        cache = _answers_at(task.config.teacher.cache)
        with contextlib.closing(cache), Progress(task.name, len(items), unit=unit, done=answered) as progress:
            async with Endpoint(task.config.teacher, task.learned) as endpoint:
                teacher = _Teacher(task.config, task.journal, endpoint, cache)
                workers = [work(teacher, progress) for _ in range(min(task.config.teacher.concurrency, len(items)))]
                for outcome in await asyncio.gather(*workers, return_exceptions=True):
                    if outcome:
                        raise outcome

    asyncio.run(run())


class _Teacher:
    """An endpoint with a token budget, and the journal and cache that store its answers."""

    def __init__(self, config: ConfigDict, journal: Journal, endpoint: Any, cache: AnswerCache | RecordedAnswers):
        self._config, self._journal, self._endpoint, self._cache = config, journal, endpoint, cache
        self.spent, self.settled = sum(_tokens(journal)), 0

    async def ask(
        self,
        key: Key,
        versions: Iterable[Messages],
        temperature: float,
        schema: dict[str, Any] | None = None,
        authors: Iterable[str] = (),
    ) -> 'Completion':
        """Return an answer from the journal, from the cache or, if neither has it, from the endpoint.

        The versions of the messages are tried in order until one is not rejected as too long. The authors are stored in
        the cache, even if it already contained the answer.

        Raises:
          UserError: the endpoint refuses all requests or does not answer, or the budget is spent.
        """
        from data_pipelines.teacher.completions import Completion, TooLong

        if key in self._journal:
            return Completion(**self._journal[key])
        answer = Completion(None, False, 0, 0)
        for messages in versions:
            request = _request(self._config, key, messages, temperature, schema)
            name = digest(request)
            if cached := self._cache.get(name):
                answer = Completion(*cached, 0, 0)
                break
            self._cache.refuse_new()
            self._refuse_overspending()
            try:
                answer = await self._endpoint.complete(request)
            except TooLong:
                continue
            break
        self._journal.add(key, answer._asdict())
        self.spent += answer.tokens_in + answer.tokens_out
        if answer.text is not None:
            self._cache.put(name, answer.text, answer.finished, authors)
        return answer

    def _refuse_overspending(self) -> None:
        budget = self._config.teacher.budget
        if budget and self.spent >= budget:
            raise UserError(
                f'config.teacher.budget: {self.spent:,} of {budget:,} tokens are spent: raise the budget and run again '
                'to resume'
            )


def _request(
    config: ConfigDict, key: Key, messages: Messages, temperature: float, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    request = dict(model=config.teacher.model, messages=messages, temperature=temperature)
    request |= dict(max_tokens=config.sampler.new_tokens, seed=int(digest(config.seed, key)[:8], 16) >> 1)
    if config.sampler.top_p < 1:
        request['top_p'] = config.sampler.top_p
    if not schema:  # a penalty or a stop string could break an answer in JSON
        request |= _processors(config)
    if schema:
        named = dict(name='answer', schema=schema, strict=True)
        request['response_format'] = dict(type='json_schema', json_schema=named)
    return request


def _processors(config: ConfigDict) -> dict[str, Any]:
    """Return the sampler settings, except those that are off, that many servers accept under the same names."""
    settings = settings_identity(config, 'sampler')
    return {name: settings[name] for name in ('top_k', 'min_p', 'repetition_penalty', 'stop') if name in settings}


def _versions(prompt: Prompt) -> Iterator[Messages]:
    """Yield a prompt's messages in ever shorter versions: first all, then without the oldest exchange, and so on."""
    system, persona = (defused(text.strip()) for text in prompt.context)
    opening = to_messages([('system', system)] if system else [])
    for start in range(0, len(prompt.turns) - prompt.keep + 1, 2):
        messages = to_messages((role, defused(content.strip())) for role, content in prompt.turns[start:])
        if persona:
            messages[0]['content'] = f'About me: {persona}\n\n{messages[0]["content"]}'
        yield opening + messages


def _messages(question: Question) -> Messages:
    """Return a question's messages, with the schema appended to the last message."""
    messages = to_messages((role, defused(content.strip())) for role, content in question.turns)
    # Some servers silently ignore `response_format`.
    messages[-1]['content'] += f'\n\nAnswer with JSON alone, by this schema:\n{json.dumps(question.schema)}'
    return messages
