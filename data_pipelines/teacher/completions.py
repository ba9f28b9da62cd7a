"""Sends requests to an OpenAI-compatible endpoint, and copes with its restarts, rate limits and malformed responses.

This module needs the extra `endpoint`. Stages use `data_pipelines.teacher.endpoint`, which imports this module only
when it has requests to send.
"""

import asyncio
import base64
import html
import json
import os
import re
import sys
import urllib.parse
from typing import Any, NamedTuple

import httpx2
import jsonschema
import openai
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError

PATIENCE = 5  # an answer must be complete within this many timeouts; some servers send blanks while a request waits
LONGEST_ANSWER = 32 * 2**20  # bytes, decompressed
MAX_TOKENS = 10**9  # largest token count that an answer may report, so that the journal can add up the counts
_OF_THE_TRANSFER = ('content-encoding', 'content-length', 'transfer-encoding')  # true only before decompression
# How OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic, Gemini and xAI say that a request is too long.
_TOO_LONG = re.compile(
    r'context[ _](length|size|window)|maximum (model|prompt) length|max_new_tokens|prompt is too long'
    r'|input token count',
    re.I,
)
_OPTIONAL = {  # optional request fields, and how error messages refer to them
    'response_format': re.compile(r'response_format|json_schema|grammar', re.I),
    'seed': re.compile(r'\bseed\b'),
    'top_p': re.compile(r'\btop_p\b'),
}
_EXTRA = ('top_k', 'min_p', 'repetition_penalty')  # fields that many servers take, but OpenAI's client does not know
# Finish reasons of complete answers: OpenAI's, TGI's and two of Anthropic's.
_FINISHED = ('stop', 'eos_token', 'end_turn', 'stop_sequence')


class Completion(NamedTuple):
    """An endpoint's answer to a request.

    Attributes:
      text: the answer; None if the endpoint gives no answer to this request.
      finished: whether the answer is complete.
      tokens_in: the number of prompt tokens charged for.
      tokens_out: the number of answer tokens charged for.
    """

    text: str | None
    finished: bool
    tokens_in: int
    tokens_out: int


class TooLong(Exception):
    """Raised when a request does not fit in the endpoint's context window."""


class Endpoint:
    """A client for the endpoint at `config.teacher.path`, for use as an async context manager.

    Args:
      learned: maps each request field that the endpoint rejects to the name that the endpoint expects instead, or to
        '' if the field must be omitted. An entry is added whenever an error message shows what to change.

    Raises:
      UserError: the API key is not one line of printable ASCII characters.
    """

    def __init__(self, teacher: ConfigDict, learned: dict[str, str]):
        self._teacher, self._learned = teacher, learned
        self._key = os.environ.get(teacher.key_variable, '').strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f'environment variable {teacher.key_variable} (config.teacher.key_variable) does not contain a '
                'valid key: set the variable to one line of printable ASCII characters'
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
        """Return the completion of a request, after retrying failures that may be temporary.

        The completion's `text` is None if the endpoint refuses this request or fails on it repeatedly, but still
        answers a harmless request.

        Args:
          doubted: whether the request has already failed once while the endpoint was up.

        Raises:
          TooLong: the request does not fit in the endpoint's context window.
          UserError: the endpoint refuses all requests, gives no answer after `config.teacher.retries` retries, or does
            not report how many tokens it used although `config.teacher` sets a budget or a price.
        """
        fields = {self._learned.get(name, name): value for name, value in request.items()}
        fields.pop('', None)
        try:
            return await self._send(fields)
        except openai.APIError as error:
            failure = error
        status, body = _status_and_body(failure)
        if status == 413 or (status in (400, 422) and _TOO_LONG.search(body)):
            raise TooLong
        if status in (400, 422) and self._learn(fields, body):
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
        again = await self.complete(request, doubted=True)  # the endpoint may have been down until now
        tokens_in, tokens_out = again.tokens_in + other.tokens_in, again.tokens_out + other.tokens_out
        return again._replace(tokens_in=tokens_in, tokens_out=tokens_out)

    async def _send(self, fields: dict[str, Any], *, retries: int | None = None) -> Completion:
        client = self._client if retries is None else self._client.with_options(max_retries=retries)
        known = {name: value for name, value in fields.items() if name not in _EXTRA}
        extra = {name: fields[name] for name in _EXTRA if name in fields}
        response = await client.chat.completions.with_raw_response.create(**known, extra_body=extra)
        completion, counted = _completion(response.content)
        if not counted and (self._teacher.budget or self._teacher.price_in or self._teacher.price_out):
            raise UserError(
                'config.teacher.path: the endpoint does not say how many tokens it used: set budget, price_in and '
                'price_out in config.teacher to 0'
            )
        return completion

    def _learn(self, fields: dict[str, Any], refusal: str) -> bool:
        """Change later requests as the endpoint's refusal suggests; return False if it suggests no known change."""
        if 'max_tokens' in fields and 'max_completion_tokens' in refusal:
            self._learned['max_tokens'] = 'max_completion_tokens'
            return True
        for name, named in _OPTIONAL.items():
            if name in fields and named.search(refusal):
                if name not in self._learned:
                    print(f'{self._teacher.path} does not accept {name}; later requests omit it', file=sys.stderr)
                self._learned[name] = ''
                return True
        return False

    def _failure(self, error: openai.APIError) -> UserError:
        status, body = _status_and_body(error)
        answer = f'status {status}: {body}' if status else body
        for echo in _echoes(self._key) if self._key else ():
            answer = re.sub(re.escape(echo), '(the key)', answer, flags=re.IGNORECASE)
        key = f'environment variable {self._teacher.key_variable} (config.teacher.key_variable)'
        remedy = {
            400: 'change what the endpoint objects to',
            401: f'put the key for this endpoint in the {key}',
            403: f'check the permissions of the key in the {key}',
            404: 'check config.teacher.model and config.teacher.path (it often ends in /v1)',
            422: 'change what the endpoint objects to',
            429: 'lower config.teacher.concurrency',
        }.get(status, 'check that the server is running')
        if not status and 'Timeout' in answer:
            remedy = 'raise config.teacher.timeout'
        return UserError(
            f'config.teacher.path: {self._teacher.path} gave no usable answer ({" ".join(answer.split())[:300]}): '
            f'{remedy} and run again to resume'
        )


def _status_and_body(error: openai.APIError) -> tuple[int, str]:
    """Return the HTTP status and the body of the endpoint's response, or 0 and the cause if there was no response."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code, error.response.text
    cause = error.__cause__ or error
    return 0, str(cause) or type(cause).__name__


class _Client(openai.DefaultAsyncHttpxClient):
    """A client that treats a response without a completion as a failed request, and an endless answer as a timeout.

    Args:
      longest: maximum number of seconds from a request to the end of its answer, even if data keeps arriving.
    """

    def __init__(self, longest: float):
        super().__init__()
        self._longest = longest

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._longest):
                response = await _whole(await super().send(request, **options | dict(stream=True)), request)
        except TimeoutError:
            raise httpx2.ReadTimeout(f'no complete answer in {self._longest:g} s', request=request) from None
        if response.is_success:
            try:
                _completion(response.content)
            except ValueError as error:
                raise httpx2.RemoteProtocolError(str(error), request=request) from None
        return response


async def _whole(streamed: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
    """Return an answer after reading it to its end.

    Raises:
      httpx2.RemoteProtocolError: the answer, decompressed, has more than `LONGEST_ANSWER` bytes.
    """
    body = bytearray()
    try:
        async for part in streamed.aiter_bytes():
            body += part
            if len(body) > LONGEST_ANSWER:
                raise httpx2.RemoteProtocolError(f'the answer has more than {LONGEST_ANSWER} bytes', request=request)
    finally:
        await streamed.aclose()
    headers = {name: value for name, value in streamed.headers.items() if name.lower() not in _OF_THE_TRANSFER}
    return httpx2.Response(streamed.status_code, headers=headers, content=bytes(body), request=request)


def _echoes(key: str) -> list[str]:
    """Return the forms in which an error page may repeat an API key, the longest first."""
    data = key.encode()
    # In the base64 of a longer text, a key has one of three forms; the characters at the ends mix with its neighbours.
    base64s = [base64.b64encode(b'x' * shift + data).decode()[shift and 4 : -4] for shift in range(3)]
    forms = [key, json.dumps(key)[1:-1], html.escape(key), urllib.parse.quote(key, safe=''), data.hex(), *base64s]
    forms += [form.replace('+', '-').replace('/', '_') for form in base64s]
    return sorted({form for form in forms if len(form) >= 8 or form == key}, key=len, reverse=True)


def _completion(body: bytes) -> tuple[Completion, bool]:
    """Return the completion in an answer, and whether the answer states both token counts.

    If a count is missing, both counts are 0 in the completion.

    Raises:
      ValueError: the answer is not a completion.
    """
    try:
        answer = json.loads(body)
        choice, usage = answer['choices'][0], answer.get('usage') or {}
        text, end = choice['message'].get('content'), choice.get('finish_reason')
        tokens = [usage.get(name) for name in ('prompt_tokens', 'completion_tokens')]
        good = isinstance(text, str | None) and isinstance(end, str | None)
        good &= end != 'error' and not choice.get('error')  # how OpenRouter reports a provider's failure
        good &= all(count is None or (isinstance(count, int) and 0 <= count <= MAX_TOKENS) for count in tokens)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ValueError(f'the answer is not a completion: {body[:100].decode(errors="replace")}')
    text = (text or '').encode(errors='replace').decode()  # JSON can contain lone surrogates
    counted = None not in tokens
    return Completion(text, end in _FINISHED, *(tokens if counted else (0, 0))), counted


def parse_json(text: str, schema: dict[str, Any]) -> Any | None:
    """Return the JSON object in an answer, ignoring text around it; None if there is no object that fits the schema.

    >>> parse_json('Sure! ```{"label": "other"}```', {'required': ['label']})
    {'label': 'other'}
    """
    text = text.rpartition('</think>')[2]
    try:
        value = json.loads(text[text.find('{') : text.rfind('}') + 1], parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # raises for lone surrogates, which cannot be written
        return value if jsonschema.Draft202012Validator(schema).is_valid(value) else None
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON')
