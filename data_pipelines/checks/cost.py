"""Estimates the tokens, money and time that a loop spends on a teacher behind an endpoint.

The estimate combines two measurements: the tokens and the time that the teacher needs for a few built-in test
questions, and the lengths of the texts in a sample of the data.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.checks.sample import Sample
from data_pipelines.labelling.labels import turns_after_replies
from data_pipelines.persona.claims import quote_of
from data_pipelines.teacher.prompts import render
from rlhi_jax.config.loop_paths import REWRITTEN

FEEDBACK_SHARE = 0.25  # assumed fraction of follow-ups that are feedback; the actual one is known only after labelling
CHARACTERS = 4  # per token of English text, on average
_READ = 2000  # the most characters of each text that the prompt label_follow_up shows


class Asked(NamedTuple):
    """The cost of asking the teacher the built-in questions of one kind.

    Attributes:
      questions: the number of questions.
      characters: the mean number of characters of user text in a question.
      tokens_in: the number of tokens in all prompts.
      tokens_out: the number of tokens in all answers.
      seconds: the time from the first request to the last answer.
    """

    questions: int
    characters: float
    tokens_in: int
    tokens_out: int
    seconds: float


def asked_of(labels: Asked | None, sentences: Asked) -> list[Asked]:
    """Return the measured costs as a list, without `labels` if it is None."""
    return [sentences] if labels is None else [labels, sentences]


class Lengths(NamedTuple):
    """Mean lengths in characters of four texts around a follow-up, averaged over the follow-ups in a sample.

    Attributes:
      exchange: the request, the reply and the follow-up together, each cut to the part that the labelling prompt shows.
      quote: the follow-up, cut to the part that is shown in the prompt about wishes.
      conversation: the conversation up to and including the follow-up.
      reply: the reply before the follow-up.
    """

    exchange: float
    quote: float
    conversation: float
    reply: float


class Work(NamedTuple):
    """The number of requests of one kind that a loop will send, and the mean tokens and seconds per request."""

    name: str
    requests: float
    tokens_in: float
    tokens_out: float
    seconds: float

    @property
    def tokens(self) -> float:
        return self.requests * (self.tokens_in + self.tokens_out)

    @property
    def hours(self) -> float:
        return self.requests * self.seconds / 3600

    def price(self, price_in: float, price_out: float) -> float:
        """Return the price of all requests, given prices per million tokens."""
        return self.requests * (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def lengths_of(sample: Sample) -> Lengths:
    """Return the mean lengths of the texts in a sample, which must contain at least one follow-up."""
    found = []
    for conversation in sample.conversations:
        sizes = [len(message['content']) for message in conversation['messages']]
        for turn_index, turn in turns_after_replies(conversation):
            exchange = sum(min(len(text), _READ) for text in (turn.request, turn.reply, turn.text))
            found.append((exchange, len(quote_of(turn.text)), sum(sizes[: turn_index + 1]), len(turn.reply)))
    return Lengths(*(sum(column) / len(found) for column in zip(*found, strict=True)))


def work_of_teacher(
    config: ConfigDict, follow_ups: float, lengths: Lengths, labels: Asked | None, sentences: Asked
) -> list[Work]:
    """Return an estimate of the requests that a loop will send to the teacher, one entry per kind of request.

    A question about a real text is assumed to cost as much as a built-in question, with the prompt tokens adjusted for
    the length of the text. Rewrites are assumed to be generated as fast, in tokens per second, as the answers to the
    built-in questions.

    Args:
      config: the loop's config.
      follow_ups: the number of follow-ups in all conversations.
      lengths: the mean lengths of the texts.
      labels: the cost of the built-in questions about follow-ups; None if the teacher does not label them.
      sentences: the cost of the built-in questions about wishes.
    """

    def like(name: str, requests: float, asked: Asked, characters: float) -> Work:
        longer = (characters - asked.characters) / CHARACTERS
        tokens_in = max(asked.tokens_in / asked.questions + longer, 0)
        return Work(name, requests, tokens_in, asked.tokens_out / asked.questions, asked.seconds / asked.questions)

    complaints, work = follow_ups * FEEDBACK_SHARE, []
    if labels is not None:
        work.append(like('labels', follow_ups, labels, lengths.exchange))
    if config.personas.writer == 'teacher':
        requests = complaints * config.personas.samples
        work.append(like('sentences for personas', requests, sentences, lengths.quote))
    settings = config.rewrites
    rewritten = min(complaints, settings.max_turns) if settings.max_turns else complaints
    tokens_in = (lengths.conversation + len(render('rewrite', feedback=''))) / CHARACTERS
    tokens_out = min(lengths.reply / CHARACTERS, config.sampler.new_tokens)
    asked = asked_of(labels, sentences)
    per_token = sum(each.seconds for each in asked) / max(sum(each.tokens_out for each in asked), 1)
    requests = dict(rewrites=rewritten * settings.samples, strangers=complaints * 2 * config.strangers.samples)
    for name in REWRITTEN[config.pairs.against]:
        work.append(Work(name, requests[name], tokens_in, tokens_out, tokens_out * per_token))
    return work


def in_words(work: Sequence[Work], follow_ups: float, price_in: float, price_out: float) -> list[str]:
    """Return lines of text to print: a heading, one line for each kind of work, and a line with the totals."""
    lines = [
        f'What the teacher will be asked about {follow_ups:,.0f} follow-ups, assuming that {FEEDBACK_SHARE:.0%} of '
        'them are feedback:'
    ]
    for each in work:
        amount = _amount(each.requests, each.tokens, each.price(price_in, price_out), each.hours)
        lines.append(f'  {each.name}: {amount}')
    totals = [
        sum(column)
        for column in zip(*((w.requests, w.tokens, w.price(price_in, price_out), w.hours) for w in work), strict=True)
    ]
    return [*lines, f'  in all: {_amount(*totals)}; prices are in the currency of config.teacher.price_in.']


def _amount(requests: float, tokens: float, price: float, hours: float) -> str:
    return f'about {requests:,.0f} requests, {tokens:,.0f} tokens, {price:,.2f} in money and {hours:,.1f} hours'
