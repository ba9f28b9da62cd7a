"""Users' feedback → claims about what they like, and personas that know strictly earlier turns alone.

    python -m data_pipelines.personas --config=configs/NAME.py

The teacher says in one sentence what each remark shows that its author likes; with `config.personas.writer='quotes'`
the remark stands for itself. What breaks a rule of `data_pipelines/claim_audit.py` is counted and never written.
`config.personas.scope` says which turns a persona may know: those of the same user's 'earlier_conversations', which
had ended when this one began, or the 'first_k_turns' of the same conversation, where users have no ids (pairs are then
mined from later turns only). Writes

    claims.jsonl    every claim, with the turn that it comes from (`data_pipelines/claims.py`)
    users.jsonl     of every user with an id: the persona of their whole history, and how it came about
    records.jsonl   the persona of every user turn that may be mined

all in the order of the conversations, which is that of users: one user's history is in memory at a time. Look at them,
and mend them, with `python -m data_pipelines.persona_store`.
"""

import functools
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.claim_audit import fault, remark_fault
from data_pipelines.claims import Claim, State, contradicts, oldest_first, persona, quote_of, replaces, states, versions
from data_pipelines.endpoint import spending
from data_pipelines.generation import generate, model_identity
from data_pipelines.histories import Author, authors
from data_pipelines.lexicons import lexicons_digest
from data_pipelines.prompts import prompt_digest, render_turns
from data_pipelines.stage import (
    RECORDS,
    Record,
    Stage,
    Task,
    as_line,
    exhaust,
    in_blocks,
    input_digest,
    input_folder,
    read_records,
    stream_records,
)
from rlhi_jax.checkpoints import open_model
from rlhi_jax.config import is_endpoint, require, teacher_path
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest, new_file
from rlhi_jax.generate import Prompt
from rlhi_jax.tokenizers import load_tokenizer

USERS, CLAIMS = 'users.jsonl', 'claims.jsonl'
BLOCK = 1024  # remarks that the teacher is asked about together
COUNTED = ('remarks', 'remarks_without_answer', 'claims', 'edited', 'users', 'users_with_persona')


class Corrections(NamedTuple):
    """What people have had deleted or put otherwise: users, claims by id, and claims' texts by id."""

    users: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    texts: dict[str, str] = {}

    def deletes(self, claim: Claim) -> bool:
        return claim['user_id'] in self.users or claim['id'] in self.claims


def corrections_path(config: ConfigDict) -> Path:
    """The file of corrections: outside the folder, so that the stage applies them again whenever it runs."""
    require(config, 'data.personas')
    folder = Path(config.data.personas)
    return Path(config.personas.corrections or folder.with_name(f'{folder.name}.corrections.jsonl'))


def read_corrections(path: Path) -> Corrections:
    """Read JSON lines {"delete_user": ID}, {"delete_claim": ID} or {"edit_claim": ID, "text": TEXT}.

    What is deleted stays so; of edits of one claim the last holds.

    Raises:
      UserError: a line is none of these.
    """
    users, claims, texts = set(), set(), {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            match json.loads(line):
                case {'delete_user': str(user), **rest} if user and not rest:
                    users.add(user)
                case {'delete_claim': str(name), **rest} if not rest:
                    claims.add(name)
                case {'edit_claim': str(name), 'text': str(text), **rest} if not rest:
                    texts[name] = text
                case _:
                    raise ValueError
        except ValueError:
            raise UserError(
                f'{path}, line {number} is no correction: write {{"delete_user": ID}}, {{"delete_claim": ID}} or '
                '{"edit_claim": ID, "text": TEXT}, or remove it'
            ) from None
    return Corrections(frozenset(users), frozenset(claims), texts)


def of_users(config: ConfigDict) -> dict[str, str]:
    """The persona of each user's whole history, by user id, from the finished stage."""
    return {user['user_id']: user['persona'] for user in stream_records(input_folder(config, 'personas') / USERS)}


def of_users_digest(config: ConfigDict) -> str:
    """Identifies what `of_users` reads."""
    return file_digest(input_folder(config, 'personas') / USERS)


def token_counter(config: ConfigDict) -> Callable[[str], int]:
    """How many tokens a text has for the policy, which reads personas."""
    require(config, 'model.path')
    tokenizer = load_tokenizer(open_model(config.model.path).tokenizer_path)
    return functools.lru_cache(2**12)(lambda text: len(tokenizer.encode(text)))


@functools.cache
def _tokenizer_digest(folder: Path) -> str:
    return load_tokenizer(folder).digest


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


def remarks(author: Author, turns: Sequence[Record], *, scope: str, first_k: int) -> list[Record]:
    """An author's feedback turns that some persona may know, as claims that have no text yet."""
    found = []
    for turn in turns:
        known = scope == 'first_k_turns' and turn['place'] // 2 < first_k
        if turn['mined'] and (turn['user_id'] or known):
            where = {key: turn[key] for key in ('id', 'user_id', 'conversation', 'place')}
            said_at = author.talks[turn['conversation']]['ended']
            found.append(where | dict(said_at=said_at, quote=quote_of(turn['follow_up']), edited=False))
    return found


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


def corrected(author: Author, claims: Sequence[Claim], corrections: Corrections, counts: Counter) -> list[Claim]:
    """An author's claims less those deleted, which are counted, and with what was put otherwise.

    Raises:
      UserError: a text breaks a rule.
    """
    kept = []
    for claim in claims:
        if corrections.deletes(claim):
            counts['deleted'] += 1
            continue
        if (text := corrections.texts.get(claim['id'])) is not None:
            claim = claim | dict(text=text, edited=True)
            if reason := fault(text, claim['quote'], author.before(claim)):
                raise UserError(
                    f'the correction of {claim["id"]} to {text!r} cannot be stored ({reason}): put it otherwise, or '
                    'delete the claim'
                )
        kept.append(claim)
    return kept


def states_at_turns(
    talks: Iterable[Record], claims: Sequence[Claim], *, scope: str, first_k: int, max_claims: int
) -> Iterator[tuple[str, State]]:
    """What holds of an author at each of their turns (`CONVERSATION/PLACE`) that may be mined: what was said before it.

    Args:
      claims: the author's, oldest first.
    """
    if scope == 'first_k_turns':
        said = defaultdict(list)
        for claim in claims:
            if claim['place'] // 2 < first_k:
                said[claim['conversation']].append(claim)
        for talk in talks:
            known = states(said[talk['id']], max_claims=max_claims)[-1]
            yield from ((f'{talk["id"]}/{place}', known) for place in range(2 * first_k, len(talk['messages']), 2))
        return
    timed = [claim for claim in claims if claim['user_id'] and claim['said_at']]
    after, times = states(timed, max_claims=max_claims), [claim['said_at'] for claim in timed]
    for talk in talks:
        known = after[bisect_left(times, talk['began'])]
        yield from ((f'{talk["id"]}/{place}', known) for place in range(0, len(talk['messages']), 2))


def write_store(task: Task, everybody: Iterable[tuple[Author, list[Claim]]], counts: Counter) -> dict[str, int]:
    """Write the stage's files from everybody's claims."""
    p, count = task.config.personas, token_counter(task.config)

    @functools.lru_cache(2**12)
    def said(texts: tuple[str, ...]) -> str:
        return persona([dict(text=text) for text in texts], max_tokens=p.max_tokens, count=count)

    def persona_of(state: State) -> str:
        return said(tuple(claim['text'] for claim in state))

    def user(author: Author, claims: Sequence[Claim]) -> Record:
        history = states(claims, max_claims=p.max_claims)
        for before, claim in zip(history, claims, strict=False):
            for old in before:
                kind = 'contradicted' if contradicts(claim['text'], old['text']) else 'repeated'
                counts[kind] += replaces(claim['text'], old['text'])
        return dict(user_id=author.user_id, persona=persona_of(history[-1]), versions=versions(history))

    def records(claims_file: BinaryIO, users_file: BinaryIO) -> Iterator[Record]:
        for author, claims in everybody:
            claims_file.writelines(map(as_line, claims))
            counts.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
            claims = oldest_first(claims)
            if author.user_id:
                users_file.write(as_line(found := user(author, claims)))
                counts.update(users=1, users_with_persona=bool(found['persona']))
            at_turns = states_at_turns(
                author.talks.values(), claims, scope=p.scope, first_k=p.first_k, max_claims=p.max_claims
            )
            for name, state in at_turns:
                text = persona_of(state)
                counts.update(turns=1, turns_with_persona=bool(text))
                yield dict(id=name, persona=text)

    with new_file(task.folder / CLAIMS) as claims_file, new_file(task.folder / USERS) as users_file:
        return task.write(records(claims_file, users_file), counts)


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
