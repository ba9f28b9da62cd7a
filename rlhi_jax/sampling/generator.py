"""Replies to conversations: text in, text out, around the sampler."""

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.sampling.sampler import Request, Sampler
from rlhi_jax.sampling.settings import Sampling, sampling
from rlhi_jax.tokenizers.template import ChatTemplate, Context

Turns = tuple[tuple[str, str], ...]  # (role, content), oldest first


class Prompt(NamedTuple):
    """A conversation that ends in a user turn, to be replied to `samples` times.

    What is drawn depends on `id`, the text, the sample's number and `config.seed`. The last `keep` turns are what the
    reply is to; older ones may be left out where they do not fit.
    """

    id: str
    turns: Turns
    context: Context = Context()
    samples: int = 1
    keep: int = 1


class Reply(NamedTuple):
    """One reply to the prompt `id`; `finished` unless it was cut off at `config.sampler.new_tokens`."""

    id: str
    sample: int
    text: str
    finished: bool


class Generator:
    """Replies from one model.

    Raises:
      UserError: the model is missing or no language model, or the mesh does not divide it or the slots.
    """

    def __init__(self, config: ConfigDict, model_path: str):
        model = open_model(model_path)
        self._template = ChatTemplate.load(model.tokenizer_path)
        axes = tuple(config.mesh.to_dict().items())
        self._sampler = _sampler(str(model.path), model.weights, sampling(config), axes, config.model.dtype)

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt as the model sees it, up to where its reply begins."""
        roles = tuple(role for role, _ in prompt.turns)
        pieces: list[int] = []
        for end, (role, content) in enumerate(prompt.turns, start=1):
            if role == 'assistant':
                pieces += self._template.generation_prompt(roles[: end - 1], prompt.context)
            pieces += self._template.encode(roles[:end], content, prompt.context).ids
        return (*pieces, *self._template.generation_prompt(roles, prompt.context))

    def fit(self, prompt: Prompt) -> Prompt | None:
        """The prompt with as many turns as fit, oldest exchanges left out; None if not even the last `keep` fit."""
        for start in range(0, len(prompt.turns) - prompt.keep + 1, 2):
            shorter = prompt._replace(turns=prompt.turns[start:])
            if len(self.tokens(shorter)) <= self._sampler.sampling.prompt_tokens:
                return shorter
        return None

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[Reply]:
        """Yield every reply once, in the order in which they end.

        Raises:
          UserError: a prompt does not fit `config.sampler.prompt_tokens`.
        """
        requests = (Request(self.tokens(prompt), prompt.samples, prompt.id) for prompt in prompts)
        for done in self._sampler.sample(requests):
            text = self._template.tokenizer.decode(list(done.tokens)).strip()
            yield Reply(prompts[done.request].id, done.sample, text, done.finished)


_shared: dict[Hashable, Sampler] = {}  # one: stages of one process share the model and what is compiled


def _sampler(path: str, weights: str, how: Sampling, axes: tuple[tuple[str, int], ...], dtype: str) -> Sampler:
    key = path, weights, how, axes, dtype  # a folder may hold another model than a moment ago
    if key not in _shared:
        release()
        _shared[key] = Sampler(open_model(path), how, make_mesh(dict(axes)), dtype=dtype)
    return _shared[key]


def release() -> None:
    """Forget the model that generators share, and give its memory back."""
    _shared.clear()


def prompt_turns(record: Any, texts: Sequence[str]) -> Turns:
    """The turns of a prompt as a JSON lines file holds it, with fields of `texts` beside its messages.

    Raises:
      ValueError: saying what is wrong with it.
    """
    if not isinstance(record, dict):
        raise ValueError('it is no object')
    for name in texts:
        if not _is_text(record.get(name)):
            raise ValueError(f'its {name} is no text')
    said = record.get('messages')
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError('its messages are no list of objects')
    roles = [('user', 'assistant')[place % 2] for place in range(len(said) | 1)]  # an odd number
    if [turn.get('role') for turn in said] != roles:
        raise ValueError('the roles of its messages are not user and assistant in turn, from user to user')
    if not all(_is_text(turn.get('content')) and turn['content'].strip() for turn in said):
        raise ValueError('the content of a message is no text, or blank')
    return tuple((turn['role'], turn['content']) for turn in said)


def _is_text(value: Any) -> bool:
    """JSON can spell lone surrogates, which are no text that a file can hold."""
    return isinstance(value, str) and not re.search('[\ud800-\udfff]', value)
