"""Generates text replies to conversations with the sampler."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.resident import RESIDENT
from rlhi_jax.parallel.crew import shared
from rlhi_jax.parallel.sharding import local_mesh
from rlhi_jax.sampling.sampler import Request, Sampler
from rlhi_jax.sampling.settings import sampling
from rlhi_jax.tokenizers.template import ChatTemplate, Context

Turns = tuple[tuple[str, str], ...]  # (role, content), oldest first


class Prompt(NamedTuple):
    """A conversation that ends in a user turn, and the number of replies to generate for it.

    With the same model and settings, a reply depends only on the prompt's id, the prompt's text and the reply's
    `sample` number.

    Attributes:
      samples: the number of replies.
      keep: the number of most recent turns that `Generator.fit` never drops; it may drop older turns.
      authors: the ids of everyone whose text is in the turns; empty if the authors are unknown. A teacher's cache
        stores these ids with the replies.
    """

    id: str
    turns: Turns
    context: Context = Context()
    samples: int = 1
    keep: int = 1
    authors: tuple[str, ...] = ()


class Reply(NamedTuple):
    """One reply to the prompt `id`.

    Attributes:
      finished: False if the reply was cut off at `config.sampler.new_tokens`.
      logprobs: the log-probability (nats) of each token, as in `Sample`. The tokens of a stop string are included,
        although `text` omits the stop string. Empty unless `config.sampler.logprobs` is set.
    """

    id: str
    sample: int
    text: str
    finished: bool
    logprobs: tuple[float, ...] = ()


class Generator:
    """A generator that samples text replies from the model of a sampler."""

    def __init__(self, sampler: Sampler):
        self._sampler, self._template = sampler, ChatTemplate.load(sampler.model.tokenizer_path)

    @classmethod
    def open(cls, config: ConfigDict, model_path: str) -> 'Generator':
        """Return a generator for a model.

        Generators with the same model and settings share one sampler for as long as `RESIDENT` keeps it in memory.

        Raises:
          UserError: the model is missing, or `Sampler` rejects the model or the settings.
        """
        model = open_model(model_path)
        settings, axes, dtype = sampling(config), tuple(config.mesh.to_dict().items()), config.model.dtype
        # The key includes the weights, because the folder's model may have been replaced since the last call.
        key = str(model.path), model.weights, settings, axes, dtype
        return cls(RESIDENT.get(key, lambda: Sampler(model, settings, local_mesh(dict(axes)), dtype=dtype)))

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids that the model reads before its reply begins."""
        roles = tuple(role for role, _ in prompt.turns)
        pieces: list[int] = []
        for end, (role, content) in enumerate(prompt.turns, start=1):
            if role == 'assistant':
                pieces += self._template.generation_prompt(roles[: end - 1], prompt.context)
            pieces += self._template.encode(roles[:end], content, prompt.context).ids
        return (*pieces, *self._template.generation_prompt(roles, prompt.context))

    def fit(self, prompt: Prompt) -> Prompt | None:
        """Return the prompt, shortened if necessary to fit in `config.sampler.prompt_tokens`.

        The oldest exchanges are dropped first. The result is None if not even the last `keep` turns fit.
        """
        for start in range(0, len(prompt.turns) - prompt.keep + 1, 2):
            shorter = prompt._replace(turns=prompt.turns[start:])
            if len(self.tokens(shorter)) <= self._sampler.sampling.prompt_tokens:
                return shorter
        return None

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[Reply]:
        """Yield every reply once, in the order in which replies finish.

        Raises:
          UserError: a prompt does not fit in `config.sampler.prompt_tokens`.
        """
        requests = (Request(self.tokens(prompt), prompt.samples, prompt.id) for prompt in prompts)
        for done in self._sampler.sample(requests):
            text = self._sampler.sampling.before_stop(self._template.tokenizer.decode(list(done.tokens))).strip()
            yield Reply(prompts[done.request].id, done.sample, text, done.finished, done.logprobs)


@shared
def draw(config: ConfigDict, arguments: dict[str, Any], prompts: Sequence[Prompt]) -> Iterator[Reply]:
    """Sample replies to the prompts from the model `arguments['model']`; yield each reply once, in any order."""
    if prompts:
        prompts = [Prompt(*prompt)._replace(context=Context(*prompt[2])) for prompt in prompts]  # from JSON
        yield from Generator.open(config, arguments['model']).replies(prompts)


def prompt_turns(record: Any, texts: Sequence[str]) -> Turns:
    """Return the turns of a prompt, given its record in a JSON lines file.

    Args:
      record: a JSON object whose `messages` is a list of objects with `role` and `content`. The roles alternate between
        user and assistant, with the user first and last.
      texts: names of the other fields that the record must have; their values must be text.

    Raises:
      ValueError: the record is not a valid prompt; the message says why.
    """
    if not isinstance(record, dict):
        raise ValueError('it is not a JSON object')
    for name in texts:
        if not _is_text(record.get(name)):
            raise ValueError(f'its {name} is not text')
    messages = record.get('messages')
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError('its messages are not a list of objects')
    roles = [('user', 'assistant')[turn_index % 2] for turn_index in range(len(messages) | 1)]  # `| 1` makes this odd
    if [message.get('role') for message in messages] != roles:
        raise ValueError(
            'the roles of its messages do not alternate between user and assistant, with the user first and last'
        )
    if not all(_is_text(message.get('content')) and message['content'].strip() for message in messages):
        raise ValueError('the content of a message is blank or is not text')
    return tuple((message['role'], message['content']) for message in messages)


def _is_text(value: Any) -> bool:
    """Return whether the value is text that UTF-8 can encode.

    JSON also allows lone surrogates, which UTF-8 cannot encode.
    """
    return isinstance(value, str) and not re.search('[\ud800-\udfff]', value)
