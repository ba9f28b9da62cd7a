"""One request to an OpenAI-compatible endpoint → its completion, through restarts, rate limits and garbage.

Needs the extra `endpoint`; `data_pipelines.endpoint` is what stages use.
"""

import json
import os
import re
import sys
from typing import Any, NamedTuple

import httpx2
import jsonschema
import openai
from ml_collections import ConfigDict

from rlhi_jax.errors import UserError, one_line

# How servers word it: OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic.
_TOO_LONG = re.compile(r'context[ _](length|size|window)|maximum model length|max_new_tokens|prompt is too long', re.I)
_FILTERED = re.compile(r'content_filter|content management policy', re.I)


class Completion(NamedTuple):
    """What the endpoint said; `text` is None where it will not answer this request. Tokens are those charged for it."""

    text: str | None
    finished: bool
    tokens_in: int
    tokens_out: int


class TooLong(Exception):
    """The request does not fit the endpoint's context."""


class Endpoint:
    """The endpoint `config.teacher.path`; use as an async context manager."""

    def __init__(self, teacher: ConfigDict):
        self._teacher = teacher
        self._key = os.environ.get(teacher.key_variable, '')
        self._renamed: dict[str, str] = {}  # fields of requests that the endpoint wants by another name, or '': not
        self._client = openai.AsyncOpenAI(
            base_url=teacher.path,
            api_key=self._key or 'none',
            timeout=teacher.timeout,
            max_retries=teacher.retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=dict(response=[_refuse_garbage])),
        )

    async def __aenter__(self) -> 'Endpoint':
        return self

    async def __aexit__(self, *exception) -> None:
        await self._client.close()

    async def complete(self, request: dict[str, Any]) -> Completion:
        """The completion of a request, sent again after failures that may pass.

        Raises:
          TooLong: it does not fit the endpoint's context.
          UserError: the endpoint refuses it, or has not answered `config.teacher.retries` times.
        """
        fields = {self._renamed.get(name, name): value for name, value in request.items()}
        fields.pop('', None)
        try:
            done = await self._client.chat.completions.create(**fields)
        except openai.APIStatusError as error:
            if error.status_code not in (400, 413, 422):
                raise self._failure(error, error.status_code) from None
            return await self._refused(request, fields, error)
        except openai.APIConnectionError as error:
            raise self._failure(error.__cause__ or error) from None
        if done.usage is None and (self._teacher.budget or self._teacher.price_in or self._teacher.price_out):
            raise UserError(
                'config.teacher.path: the endpoint does not say how many tokens it used: set config.teacher.budget, '
                'price_in and price_out to 0'
            )
        choice, usage = done.choices[0], done.usage
        text = (choice.message.content or '').encode(errors='replace').decode()  # JSON can spell lone surrogates
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Completion(text, choice.finish_reason == 'stop', *tokens)

    async def _refused(
        self, request: dict[str, Any], fields: dict[str, Any], error: openai.APIStatusError
    ) -> Completion:
        """What to do about a request that the endpoint does not take as it is."""
        said = f'{error} {error.body}'  # which holds its code
        if error.status_code == 413 or _TOO_LONG.search(said):
            raise TooLong
        if 'response_format' in fields and re.search('response_format|json_schema|grammar', said, re.I):
            if 'response_format' not in self._renamed:
                print(f'{self._teacher.path} takes no JSON schema: asked for JSON in words', file=sys.stderr)
            self._renamed['response_format'] = ''
        elif 'max_tokens' in fields and 'max_completion_tokens' in said:
            self._renamed['max_tokens'] = 'max_completion_tokens'
        elif _FILTERED.search(said):
            return Completion(None, False, 0, 0)
        else:
            raise self._failure(error, error.status_code) from None
        return await self.complete(request)

    def _failure(self, error: BaseException, status: int = 0) -> UserError:
        said = one_line(error)[:300] or type(error).__name__
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
            f'config.teacher.path: {self._teacher.path} gives no answer ({said}): {remedy}, then run again; what is '
            'done is kept'
        )


async def _refuse_garbage(response: httpx2.Response) -> None:
    """Make a success that holds no completion a failed request, so that the client sends it again."""
    if not response.is_success:
        return
    await response.aread()
    try:
        body = json.loads(response.content)
        choice, usage = body['choices'][0], body.get('usage')
        well_formed = isinstance(choice['message'].get('content'), str | None)
        well_formed &= isinstance(choice.get('finish_reason'), str | None)
        if usage is not None:
            well_formed &= all(isinstance(usage[name], int) for name in ('prompt_tokens', 'completion_tokens'))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        well_formed = False
    if not well_formed:
        start = response.content[:100].decode(errors='replace')
        raise httpx2.RemoteProtocolError(f'the answer is no completion: {start}', request=response.request)


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
