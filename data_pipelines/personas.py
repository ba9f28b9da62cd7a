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

Look at them, and mend them, with `python -m data_pipelines.persona_store`.
"""

import functools
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.claim_audit import fault, remark_fault
from data_pipelines.claims import Claim, State, age, contradicts, persona, quote_of, replaces, said_before, states
from data_pipelines.endpoint import spending
from data_pipelines.generation import generate, model_identity
from data_pipelines.lexicons import lexicons_digest
from data_pipelines.prompts import prompt_digest, render_turns
from data_pipelines.stage import Record, Stage, input_digest, input_folder, load_records, read_records, write_records
from rlhi_jax.checkpoints import open_model
from rlhi_jax.config import require, teacher_path
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest
from rlhi_jax.generate import Prompt
from rlhi_jax.tokenizers import load_tokenizer

USERS, CLAIMS = 'users.jsonl', 'claims.jsonl'


class Corrections(NamedTuple):
    """What people have had deleted or put otherwise: users, claims by id, and claims' texts by id."""

    users: frozenset[str]
    claims: frozenset[str]
    texts: dict[str, str]

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
    return {user['user_id']: user['persona'] for user in load_records(input_folder(config, 'personas') / USERS)}


def of_users_digest(config: ConfigDict) -> str:
    """Identifies what `of_users` reads."""
    return file_digest(input_folder(config, 'personas') / USERS)


def token_counter(config: ConfigDict) -> Callable[[str], int]:
    """How many tokens a text has for the policy, which reads personas."""
    require(config, 'model.path')
    tokenizer = load_tokenizer(open_model(config.model.path).tokenizer_path)
    return functools.cache(lambda text: len(tokenizer.encode(text)))


@functools.cache
def _tokenizer_digest(folder: Path) -> str:
    return load_tokenizer(folder).digest


def identity(config: ConfigDict) -> dict[str, Any]:
    corrections = corrections_path(config)
    return dict(
        inputs=[input_digest(config, key) for key in ('conversations', 'follow_ups')],
        teacher=model_identity(config, teacher_path(config)),
        tokenizer=_tokenizer_digest(open_model(config.model.path).tokenizer_path),
        prompt=prompt_digest('persona'),
        lexicons=lexicons_digest(),
        settings={key: value for key, value in config.personas.to_dict().items() if key != 'corrections'},
        corrections=file_digest(corrections) if corrections.exists() else '',
        sampler=config.sampler.to_dict(),
        seed=config.seed,
    )


def remarks(talks: dict[str, Record], turns: Sequence[Record], *, scope: str, first_k: int) -> list[Record]:
    """Feedback turns that some persona may know, as claims that have no text yet, oldest first; `talks` by id."""
    found = []
    for turn in turns:
        known = scope == 'first_k_turns' and turn['place'] // 2 < first_k
        if turn['mined'] and (turn['user_id'] or known):
            where = {key: turn[key] for key in ('id', 'user_id', 'conversation', 'place')}
            said_at = talks[turn['conversation']]['ended']
            found.append(where | dict(said_at=said_at, quote=quote_of(turn['follow_up']), edited=False))
    return sorted(found, key=age)


def _before(talks: dict[str, Record], claim: Claim) -> str:
    return said_before(talks[claim['conversation']], claim['place'])


def _said_by_teacher(config: ConfigDict, folder: Path, quotes: set[str], counts: Counter) -> dict[str, list[str]]:
    """What the teacher says that each remark shows, in one sentence, several times over; '' for what was cut off."""
    prompts = {}
    for quote in sorted(quotes):
        turns = tuple(render_turns('persona', remark=' '.join(quote.split())))
        prompts[quote] = Prompt(digest(quote), turns, samples=config.personas.samples, keep=len(turns))
    replies = generate(config, folder, identity(config), teacher_path(config), list(prompts.values()))
    said = {}
    for quote, prompt in prompts.items():
        counts['remarks_do_not_fit'] += not replies[prompt.id]
        lines = [(reply.text.strip().split('\n'), reply.finished) for reply in replies[prompt.id]]
        said[quote] = [first.strip() if rest or finished else '' for (first, *rest), finished in lines] or ['']
    return said


def write_claims(
    config: ConfigDict,
    folder: Path,
    talks: dict[str, Record],
    found: Sequence[Record],
    corrections: Corrections,
    counts: Counter,
) -> list[Claim]:
    """A claim of each remark: the first of what is said of it that passes the audit; if none does, why is counted."""
    counts['remarks'] = len(found)
    usable = []
    for remark in found:
        if corrections.deletes(remark):
            counts['deleted'] += 1
        elif reason := remark_fault(remark['quote'], _before(talks, remark)):
            counts[f'dropped_{reason}'] += 1
        else:
            usable.append(remark)
    quotes = {remark['quote'] for remark in usable}
    if config.personas.writer == 'quotes':
        said = {quote: [' '.join(quote.split())] for quote in quotes}
    else:
        said = _said_by_teacher(config, folder, quotes, counts)
        counts.update(spending(config, folder, identity(config)))
    kept = []
    for remark in usable:
        before = _before(talks, remark)
        faults = {text: fault(text, remark['quote'], before) for text in said[remark['quote']]}
        if text := next((text for text, reason in faults.items() if not reason), ''):
            kept.append(remark | dict(text=text))
        else:
            counts[f'dropped_{next(iter(faults.values()))}'] += 1
    return kept


def corrected(claims: Sequence[Claim], talks: dict[str, Record], corrections: Corrections) -> list[Claim]:
    """The claims less those deleted, and with what was put otherwise.

    Raises:
      UserError: a text breaks a rule.
    """
    kept = []
    for claim in claims:
        if corrections.deletes(claim):
            continue
        if (text := corrections.texts.get(claim['id'])) is not None:
            claim = claim | dict(text=text, edited=True)
            if reason := fault(text, claim['quote'], _before(talks, claim)):
                raise UserError(
                    f'the correction of {claim["id"]} to {text!r} cannot be stored ({reason}): put it otherwise, or '
                    'delete the claim'
                )
        kept.append(claim)
    return kept


def states_at_turns(
    talks: Sequence[Record], claims: Sequence[Claim], *, scope: str, first_k: int, max_claims: int
) -> Iterator[tuple[str, State]]:
    """What holds of its author at each user turn (`CONVERSATION/PLACE`) that may be mined: what they said before it."""
    said: dict[str, list[Claim]] = defaultdict(list)
    earlier = scope == 'earlier_conversations'
    for claim in claims:
        if not earlier and claim['place'] // 2 < first_k:
            said[claim['conversation']].append(claim)
        elif earlier and claim['user_id'] and claim['said_at']:
            said[claim['user_id']].append(claim)
    after = {key: states(own, max_claims=max_claims) for key, own in said.items()}
    times = {key: [claim['said_at'] for claim in own] for key, own in said.items()}
    for talk in talks:
        key = talk['user_id'] if earlier else talk['id']
        known = after.get(key, [()])
        state = known[bisect_left(times.get(key, ()), talk['began'])] if earlier else known[-1]
        for place in range(0 if earlier else 2 * first_k, len(talk['messages']), 2):
            yield f'{talk["id"]}/{place}', state


def versions(claims: Sequence[Claim], *, max_claims: int) -> list[Record]:
    """How a user's persona came about: from which conversation on which claims hold, oldest first."""
    found: list[Record] = []
    for claim, state in zip(claims, states(claims, max_claims=max_claims)[1:], strict=True):
        version = dict(since=claim['conversation'], at=claim['said_at'], claims=[each['id'] for each in state])
        if found and found[-1]['since'] == version['since']:
            found.pop()  # a conversation makes one version
        found.append(version)
    return found


def write_store(
    config: ConfigDict, folder: Path, talks: Sequence[Record], claims: Sequence[Claim], counts: Counter
) -> dict[str, int]:
    """Write the stage's files from its claims, oldest first."""
    p, count = config.personas, token_counter(config)

    @functools.cache
    def said(texts: tuple[str, ...]) -> str:
        return persona([dict(text=text) for text in texts], max_tokens=p.max_tokens, count=count)

    def persona_of(state: State) -> str:
        return said(tuple(claim['text'] for claim in state))

    every = {user: [] for user in sorted({talk['user_id'] for talk in talks} - {''})}
    for claim in claims:
        if claim['user_id']:
            every[claim['user_id']].append(claim)
    users = []
    for user, own in every.items():
        history = states(own, max_claims=p.max_claims)
        for before, claim in zip(history, own, strict=False):
            for old in before:
                kind = 'contradicted' if contradicts(claim['text'], old['text']) else 'repeated'
                counts[kind] += replaces(claim['text'], old['text'])
        made = versions(own, max_claims=p.max_claims)
        users.append(dict(user_id=user, persona=persona_of(history[-1]), versions=made))
    at_turns = states_at_turns(talks, claims, scope=p.scope, first_k=p.first_k, max_claims=p.max_claims)
    records = [dict(id=name, persona=persona_of(state)) for name, state in at_turns]
    write_records(folder / CLAIMS, claims)
    write_records(folder / USERS, users)
    counts.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
    counts.update(turns=len(records), turns_with_persona=sum(bool(record['persona']) for record in records))
    counts.update(users=len(users), users_with_persona=sum(bool(user['persona']) for user in users))
    return STAGE.write(config, folder, records, counts)


def _work(config: ConfigDict, folder: Path) -> dict[str, int]:
    talks, p = read_records(config, 'conversations'), config.personas
    if p.scope == 'earlier_conversations' and not any(talk['user_id'] and talk['began'] for talk in talks):
        raise UserError(
            "config.personas.scope is 'earlier_conversations', but no conversation has a user id and turns with time "
            "stamps: set it to 'first_k_turns', or give the raw data hashed_ip (or user_id) and its turns timestamp"
        )
    counts: Counter = Counter()
    corrections = read_corrections(corrections_path(config))
    by_id = {talk['id']: talk for talk in talks}
    found = remarks(by_id, read_records(config, 'follow_ups'), scope=p.scope, first_k=p.first_k)
    claims = write_claims(config, folder, by_id, found, corrections, counts)
    claims = corrected(claims, by_id, corrections)
    return write_store(config, folder, talks, claims, counts)


STAGE = Stage('personas', _work, 'data.personas', identity)

if __name__ == '__main__':
    STAGE.main()
