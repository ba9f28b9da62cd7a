"""One request to an OpenAI-compatible endpoint → its completion, through restarts, rate limits and garbage.

Needs the extra `endpoint`; `data_pipelines.teacher.endpoint` is what stages use.
"""

import asyncio
import json
import os
import re
import sys
from typing import Any, NamedTuple

import httpx2
import jsonschema
import openai
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError

PATIENCE = 5  # timeouts: some servers send blanks for as long as a request waits
# How servers word it: OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic, Gemini, xAI.
_TOO_LONG = re.compile(
    r'context[ _](length|size|window)|maximum (model|prompt) length|max_new_tokens|prompt is too long'
    r'|input token count',
    re.I,
)
_SPARE = {  # fields that a request can do without, and how a refusal names them
    'response_format': re.compile(r'response_format|json_schema|grammar', re.I),
    'seed': re.compile(r'\bseed\b'),
    'top_p': re.compile(r'\btop_p\b'),
}
_FINISHED = ('stop', 'eos_token', 'end_turn', 'stop_sequence')  # OpenAI, TGI, Anthropic


class Completion(NamedTuple):
    """What the endpoint said; `text` is None where it will not answer this request. Tokens are those charged for it."""

    text: str | None
    finished: bool
    tokens_in: int
    tokens_out: int


class TooLong(Exception):
    """The request does not fit the endpoint's context."""


class Endpoint:
    """The endpoint `config.teacher.path`; use as an async context manager.

    Args:
      learned: fields of requests that the endpoint wants by another name, or '': not at all. It is added to.

    Raises:
      UserError: the key cannot be sent.
    """

    def __init__(self, teacher: ConfigDict, learned: dict[str, str]):
        self._teacher, self._learned = teacher, learned
        self._key = os.environ.get(teacher.key_variable, '').strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f'environment variable {teacher.key_variable} (config.teacher.key_variable) holds no key: put one line '
                'of ASCII characters into it'
            )
        self._client = openai.AsyncOpenAI(
            base_url=teacher.path,
            api_key=self._key or 'none',
            timeout=teacher.timeout,
            max_retries=teacher.retries,
            http_client=_Client(PATIENCE * teacher.timeout),
        )

    async def __aenter__(self) -> 'Endpoint':
        return self

    async def __aexit__(self, *exception) -> None:
        await self._client.close()

    async def complete(self, request: dict[str, Any], *, doubted: bool = False) -> Completion:
        """The completion of a request, sent again after failures that may pass.

        A request has no text if it is refused for what it says, which shows when a harmless one is answered, or if it
        fails time after time while a harmless one is answered.

        Args:
          doubted: it has failed before, though the endpoint ran.

        Raises:
          TooLong: it does not fit the endpoint's context.
          UserError: the endpoint refuses whatever is said, or has not answered `config.teacher.retries` times.
        """
        fields = {self._learned.get(name, name): value for name, value in request.items()}
        fields.pop('', None)
        try:
            return await self._send(fields)
        except openai.APIError as error:
            failure = error
        status, said = _status_and_body(failure)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(said)):
            raise TooLong
        if status in (400, 422) and self._learn(fields, said):
            return await self.complete(request)
        refused = status in (400, 403, 422)
        if not (refused or status >= 500 or not status):
            raise self._failure(failure)
        harmless = [message | dict(content='Hello') for message in fields['messages']]
        try:
            other = await self._send(fields | dict(messages=harmless), retries=self._teacher.retries if refused else 0)
        except openai.APIError:
            raise self._failure(failure) from None
        if refused or doubted:
            return Completion(None, False, other.tokens_in, other.tokens_out)
        then = await self.complete(request, doubted=True)  # the endpoint may have come back a moment ago
        return then._replace(tokens_in=then.tokens_in + other.tokens_in, tokens_out=then.tokens_out + other.tokens_out)

    async def _send(self, fields: dict[str, Any], *, retries: int | None = None) -> Completion:
        client = self._client if retries is None else self._client.with_options(max_retries=retries)
        done = await client.chat.completions.with_raw_response.create(**fields)
        said, counted = _completion(done.content)
        if not counted and (self._teacher.budget or self._teacher.price_in or self._teacher.price_out):
            raise UserError(
                'config.teacher.path: the endpoint does not say how many tokens it used: set config.teacher.budget, '
                'price_in and price_out to 0'
            )
        return said

    def _learn(self, fields: dict[str, Any], said: str) -> bool:
        """Whether a refusal says what to change in requests; from here on they are sent so."""
        if 'max_tokens' in fields and 'max_completion_tokens' in said:
            self._learned['max_tokens'] = 'max_completion_tokens'
            return True
        for name, named in _SPARE.items():
            if name in fields and named.search(said):
                if name not in self._learned:
                    print(f'{self._teacher.path} does not take {name}: it is left out from here on', file=sys.stderr)
                self._learned[name] = ''
                return True
        return False

    def _failure(self, error: openai.APIError) -> UserError:
        status, said = _status_and_body(error)
        said = f'status {status}: {said}' if status else said
        if self._key:
            said = said.replace(self._key, '(the key)')
        key = f'environment variable {self._teacher.key_variable} (config.teacher.key_variable)'
        remedy = {
            400: 'change what it objects to',
            401: f'put its key into the {key}',
            403: f'see what the key in the {key} may do',
            404: 'see that the path ends as the endpoint wants it, often in /v1, and what config.teacher.model is',
            422: 'change what it objects to',
            429: 'wait, or lower config.teacher.concurrency',
        }.get(status, 'see that it runs')
        return UserError(
            f'config.teacher.path: {self._teacher.path} gives no answer ({" ".join(said.split())[:300]}): {remedy}, '
            'then run again; what is done is kept'
        )


def _status_and_body(error: openai.APIError) -> tuple[int, str]:
    """An answer's status and body; 0 and what went wrong, if none came."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code, error.response.text
    cause = error.__cause__ or error
    return 0, str(cause) or type(cause).__name__


class _Client(openai.DefaultAsyncHttpxClient):
    """A client to which a success that holds no completion is a failed request, and one without an end a timeout.

    Args:
      longest: seconds from a request to the end of its answer, whatever signs of life there are between.
    """

    def __init__(self, longest: float):
        super().__init__()
        self._longest = longest

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._longest):
                response = await super().send(request, **options)
                await response.aread()
        except TimeoutError:
            raise httpx2.ReadTimeout(f'no whole answer in {self._longest:g} s', request=request) from None
        if response.is_success:
            try:
                _completion(response.content)
            except ValueError as error:
                raise httpx2.RemoteProtocolError(str(error), request=request) from None
        return response


def _completion(body: bytes) -> tuple[Completion, bool]:
    """What an answer says, and whether it tells its tokens; they are 0 if not.

    Raises:
      ValueError: it is no completion.
    """
    try:
        answer = json.loads(body)
        choice, usage = answer['choices'][0], answer.get('usage') or {}
        text, end = choice['message'].get('content'), choice.get('finish_reason')
        tokens = [usage.get(name) for name in ('prompt_tokens', 'completion_tokens')]
        good = isinstance(text, str | None) and isinstance(end, str | None)
        good &= end != 'error' and not choice.get('error')  # as OpenRouter passes on failures behind it
        good &= all(count is None or (isinstance(count, int) and count >= 0) for count in tokens)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ValueError(f'the answer is no completion: {body[:100].decode(errors="replace")}')
    text = (text or '').encode(errors='replace').decode()  # JSON can spell lone surrogates
    counted = None not in tokens
    return Completion(text, end in _FINISHED, *(tokens if counted else (0, 0))), counted


def parse_json(text: str, schema: dict[str, Any]) -> Any | None:
    """The JSON object in an answer, whatever stands around it; None if there is none that the schema allows.

    >>> parse_json('Sure! ```{"label": "other"}```', {'required': ['label']})
    {'label': 'other'}
    """
    text = text.rpartition('</think>')[2]
    try:
        value = json.loads(text[text.find('{') : text.rfind('}') + 1], parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates cannot be written
        return value if jsonschema.Draft202012Validator(schema).is_valid(value) else None
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is no JSON')
