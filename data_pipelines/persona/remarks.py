"""Remarks: the feedback turns that a persona may draw on, and the teacher's sentences about them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, author_id
from data_pipelines.core.records import FollowUp, Remark
from data_pipelines.core.stage import Task
from data_pipelines.persona.audit import fault, remark_fault
from data_pipelines.persona.claims import quote_of
from data_pipelines.persona.scopes import SCOPES
from data_pipelines.persona.stage import prompt_name
from data_pipelines.teacher.endpoint import add_authors
from data_pipelines.teacher.generation import generate
from data_pipelines.teacher.prompts import render_turns
from rlhi_jax.config import is_endpoint, teacher_path
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Prompt, Reply


def remarks_with_faults(
    author: Author, turns: Iterable[FollowUp], settings: ConfigDict
) -> Iterator[tuple[Remark, str]]:
    """Yield an author's remarks, each with the reason not to make a claim from it, or '' if there is none.

    Args:
      turns: the author's labelled follow-up turns.
      settings: `config.personas`.
    """
    for turn in turns:
        if turn['mined'] and SCOPES[settings.scope].may_know(turn, settings):
            remark = _remark(author, turn)
            yield remark, remark_fault(remark['quote'], author.text_before(remark), settings.audit)


def _remark(author: Author, turn: FollowUp) -> Remark:
    return Remark(
        id=turn['id'],
        user_id=turn['user_id'],
        conversation=turn['conversation'],
        turn_index=turn['turn_index'],
        said_at=author.conversations[turn['conversation']]['ended'],
        quote=quote_of(turn['follow_up']),
        edited=False,
    )


def prompt_about(config: ConfigDict, quote: str) -> Prompt:
    """Return the prompt that asks the teacher for sentences about a remark."""
    turns = tuple(render_turns(prompt_name(config), remark=as_sentence(quote)))
    return Prompt(digest(quote), turns, samples=config.personas.samples, keep=len(turns))


def as_sentence(quote: str) -> str:
    """Return a remark as one line of text, with single spaces between its words."""
    return ' '.join(quote.split())


def first_lines(replies: Iterable[Reply]) -> list[str]:
    """Return the first line of each reply from the teacher; '' if the reply was cut off within that line."""
    lines = [(reply.text.strip().split('\n'), reply.finished) for reply in replies]
    return [first.strip() if rest or finished else '' for (first, *rest), finished in lines]


def sentence_faults(author: Author, remark: Remark, sentences: Sequence[str], settings: ConfigDict) -> dict[str, str]:
    """Return the reason not to store each sentence about a remark, keyed by sentence; '' if there is none.

    If there are no sentences, the empty string is checked instead. If no sentence may be stored, callers count the
    remark under the first reason. The argument `settings` is `config.personas`.
    """
    before = author.text_before(remark)
    return {text: fault(text, remark['quote'], before, settings.audit) for text in sentences or ['']}


def ask_about(task: Task, remarks: Iterable[Remark]) -> None:
    """Ask the teacher for sentences about remarks, and save them in the task's journal, where `sentences_about` looks.

    If several remarks have the same quote, the teacher is asked only once. If the teacher is an endpoint, its cache
    then lists the authors of all these remarks.
    """
    said_by = defaultdict(set)
    for remark in remarks:
        said_by[remark['quote']].add(author_id(remark['user_id'], remark['conversation']))
    prompts = [
        prompt_about(task.config, quote)._replace(authors=tuple(sorted(said_by[quote]))) for quote in sorted(said_by)
    ]
    generate(task, teacher_path(task.config), prompts)
    if is_endpoint(teacher_path(task.config)):
        add_authors(task.config, prompts)


def sentences_about(task: Task, quotes: Iterable[str]) -> dict[str, list[str]]:
    """Return the sentences that the teacher wrote about each remark, keyed by the remark's quote.

    Each sentence is the first line of a sample, or '' if the sample was cut off within that line. A remark's list is
    empty if the prompt is too long or the teacher refuses to answer. With `config.personas.writer='quotes'`, the remark
    itself is the only sentence.
    """
    if task.config.personas.writer == 'quotes':
        return {quote: [as_sentence(quote)] for quote in quotes}
    prompts = {quote: prompt_about(task.config, quote) for quote in sorted(set(quotes))}
    replies = generate(task, teacher_path(task.config), list(prompts.values()))
    return {quote: first_lines(replies[prompt.id]) for quote, prompt in prompts.items()}
