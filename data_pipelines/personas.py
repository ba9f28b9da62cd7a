"""Users' feedback → claims about what they like, and personas that know strictly earlier turns alone.

    python -m data_pipelines.personas --config=configs/NAME.py

The teacher says in one sentence what each remark shows that its author likes; with `config.personas.writer='quotes'`
the remark stands for itself. What breaks a rule of `data_pipelines/persona/audit.py` is counted and never written.
`config.personas.scope` says which turns a persona may know: those of the same user's 'earlier_conversations', which
had ended when this one began, or the 'first_k_turns' of the same conversation, where users have no ids (pairs are then
mined from later turns only). Writes

    claims.jsonl    every claim, with the turn that it comes from (`data_pipelines/persona/claims.py`)
    users.jsonl     of every user with an id: the persona of their whole history, and how it came about
    records.jsonl   the persona of every user turn that may be mined

all in the order of the conversations, which is that of users: one user's history is in memory at a time. Look at them,
and mend them, with `python -m data_pipelines.persona_store`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, authors
from data_pipelines.core.stage import (
    RECORDS,
    Record,
    Stage,
    Task,
    exhaust,
    in_blocks,
    input_digest,
    input_folder,
    read_records,
)
from data_pipelines.persona.audit import fault, remark_fault
from data_pipelines.persona.claims import (
    Claim,
)
from data_pipelines.persona.corrections import Corrections, corrected, corrections_path, read_corrections
from data_pipelines.persona.scopes import remarks
from data_pipelines.persona.store import COUNTED, _tokenizer_digest, write_store
from data_pipelines.teacher.endpoint import spending
from data_pipelines.teacher.generation import generate, model_identity
from data_pipelines.teacher.prompts import prompt_digest, render_turns
from data_pipelines.text.lexicons import lexicons_digest
from rlhi_jax.config import is_endpoint, teacher_path
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Prompt

BLOCK = 1024  # remarks that the teacher is asked about together


def identity(config: ConfigDict) -> dict[str, Any]:
    corrections = corrections_path(config)
    return dict(
        inputs=[input_digest(config, key) for key in ('conversations', 'follow_ups')],
        teacher=model_identity(config, teacher_path(config)),
        tokenizer=_tokenizer_digest(open_model(config.model.path).tokenizer_path),
        prompt=prompt_digest(_prompt(config)),
        lexicons=lexicons_digest(),
        settings={key: value for key, value in config.personas.to_dict().items() if key != 'corrections'},
        corrections=file_digest(corrections) if corrections.exists() else '',
        sampler=config.sampler.to_dict(),
        seed=config.seed,
    )


def usable_remarks(
    config: ConfigDict, corrections: Corrections, counts: Counter
) -> Iterator[tuple[Author, list[Record]]]:
    """Everybody with those of their remarks that may become claims; the others are counted by their reason."""
    p = config.personas
    for author in authors(config, input_folder(config, 'follow_ups') / RECORDS):
        usable = []
        for remark in remarks(author, *author.of, scope=p.scope, first_k=p.first_k):
            counts['remarks'] += 1
            if reason := remark_fault(remark['quote'], author.before(remark)):
                counts[f'dropped_{reason}'] += 1
            elif corrections.deletes(remark):
                counts['deleted'] += 1
            else:
                usable.append(remark)
        yield author, usable


def _prompt(config: ConfigDict) -> str:
    """An endpoint's model follows instructions: what users say is delimited for it."""
    return 'persona_by_endpoint' if is_endpoint(teacher_path(config)) else 'persona'


def _said(task: Task, quotes: Iterable[str]) -> dict[str, list[str]]:
    """What is said of remarks, in one sentence, several times over; '' for what was cut off, nothing for no room.

    With `config.personas.writer='quotes'` that is the remark itself.
    """
    if task.config.personas.writer == 'quotes':
        return {quote: [' '.join(quote.split())] for quote in quotes}
    prompts = {}
    for quote in sorted(set(quotes)):
        turns = tuple(render_turns(_prompt(task.config), remark=' '.join(quote.split())))
        prompts[quote] = Prompt(digest(quote), turns, samples=task.config.personas.samples, keep=len(turns))
    replies = generate(task, teacher_path(task.config), list(prompts.values()))
    said = {}
    for quote, prompt in prompts.items():
        lines = [(reply.text.strip().split('\n'), reply.finished) for reply in replies[prompt.id]]
        said[quote] = [first.strip() if rest or finished else '' for (first, *rest), finished in lines]
    return said


def write_claims(author: Author, found: Sequence[Record], said: dict[str, list[str]], counts: Counter) -> list[Claim]:
    """A claim of each remark: the first of what is said of it that passes the audit; if none does, why is counted."""
    kept = []
    for remark in found:
        texts = said[remark['quote']]
        counts['remarks_without_answer'] += not texts
        faults = {text: fault(text, remark['quote'], author.before(remark)) for text in texts or ['']}
        if text := next((text for text, reason in faults.items() if not reason), ''):
            kept.append(remark | dict(text=text))
        else:
            counts[f'dropped_{next(iter(faults.values()))}'] += 1
    return kept


def _claims(task: Task, corrections: Corrections, counts: Counter) -> Iterator[tuple[Author, list[Claim]]]:
    """Everybody's claims. The teacher has been asked about all remarks before the first of them comes out."""
    asks = task.config.personas.writer == 'teacher'
    first = corrections if asks else Corrections()  # the teacher is not asked about what was deleted
    if asks:
        exhaust(usable_remarks(task.config, first, Counter()))  # bad input is known before the teacher is asked
        usable = usable_remarks(task.config, first, Counter())
        quotes = (remark['quote'] for _, found in usable for remark in found)
        for block in in_blocks(quotes, BLOCK):
            _said(task, block)
    for author, found in usable_remarks(task.config, first, counts):
        claims = write_claims(author, found, _said(task, [remark['quote'] for remark in found]), counts)
        yield author, corrected(author, claims, corrections, counts)
    if asks:
        counts.update(spending(task))


def _work(task: Task) -> dict[str, int]:
    scope = task.config.personas.scope
    talks = (talk for talk in read_records(task.config, 'conversations') if len(talk['messages']) > 2)
    if scope == 'earlier_conversations' and not any(talk['user_id'] and talk['began'] for talk in talks):
        raise UserError(
            "config.personas.scope is 'earlier_conversations', but of no conversation of several turns it is known "
            "whose it is and when it began: set it to 'first_k_turns', or name what tells that by "
            'config.ingest.fields.user and config.ingest.fields.said_at (of a turn; a serving log tells it, too, if it '
            'holds the call of the first turn)'
        )
    counts: Counter = Counter(dict.fromkeys(COUNTED, 0))
    return write_store(task, _claims(task, read_corrections(corrections_path(task.config)), counts), counts)


STAGE = Stage('personas', 1, _work, 'data.personas', identity)

if __name__ == '__main__':
    STAGE.main()
