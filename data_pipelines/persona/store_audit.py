"""Audits the persona store: checks its files against the conversations, and recomputes every persona.

The stage makes all personas of an author in one pass over the author's claims. The audit instead starts anew for each
turn, from the claims that `Scope.known_at` returns for that turn. The two computations thus check each other.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, authors
from data_pipelines.core.inputs import input_folder
from data_pipelines.core.record_files import RECORDS, stream_records
from data_pipelines.core.records import Claim, Record, TurnPersona, UserPersona
from data_pipelines.core.turns import turn_id, user_turn_indices
from data_pipelines.persona.audit import edit_fault, fault
from data_pipelines.persona.claims import State, contradicts, oldest_first, persona, states, versions
from data_pipelines.persona.corrections import Corrections, corrections_path, read_corrections
from data_pipelines.persona.scopes import SCOPES
from data_pipelines.persona.store import CLAIMS, USERS, token_counter
from rlhi_jax.io.files import read_json


def audit(config: ConfigDict) -> tuple[dict[str, Any], list[str]]:
    """Return statistics of the store on disk, and a message for each broken rule.

    Each claim must come from a turn of a stored conversation, quote the turn word for word, and satisfy the rules for
    claims. Each persona must follow from the claims that it may draw on.
    """
    folder = input_folder(config, 'personas')
    corrections, recompute = read_corrections(corrections_path(config)), _Recompute(config)
    users, broken, counts = stream_records(folder / USERS), [], Counter()
    for author in authors(config, folder / CLAIMS, folder / RECORDS):
        stored, records = author.records
        for claim in stored:
            if reason := _broken_claim(claim, author, corrections, config.personas.audit):
                broken.append(f'claim {claim["id"]}: {reason}')
        claims: list[Claim] = [claim for claim in stored if _has_the_fields(claim)]
        broken += _broken_order(author, claims)
        if author.user_id:
            user = next(users, None)
            broken += _broken_user(author, claims, user, recompute)
            counts.update(users=1, without_persona=not (user and user.get('persona')))
            counts.update(users_with_claims=bool(claims), claims_of_users=len(claims))
        broken += _broken_turns(config, author, claims, records, recompute)
        counts.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
        counts.update(turns=len(records), with_persona=sum(bool(record.get('persona')) for record in records))
    if next(users, None):
        broken.append(f'{USERS}: contains users who are not in the conversations')
    of_stage = read_json(folder / 'manifest.json', "rerun the 'personas' stage", fields=['counts'])['counts']
    return _figures(counts, of_stage, broken), broken


def _figures(counts: Counter, of_stage: dict[str, int], broken: Sequence[str]) -> dict[str, Any]:
    """Return the statistics to print, from the audit's own counts and the counts in the stage's manifest."""
    written = of_stage['claims'] + of_stage.get('dropped_unsupported', 0)
    return dict(
        users=counts['users'],
        users_without_persona=counts['without_persona'],
        claims=counts['claims'],
        claims_per_user=counts['claims_of_users'] / max(1, counts['users_with_claims']),
        edited=counts['edited'],
        supported=of_stage['claims'] / max(1, written),
        contradictions_resolved=of_stage.get('contradicted', 0),
        repetitions_resolved=of_stage.get('repeated', 0),
        turns=counts['turns'],
        turns_with_persona=counts['with_persona'],
        dropped={name.removeprefix('dropped_'): n for name, n in of_stage.items() if name.startswith('dropped_')},
        broken=len(broken),
    )


class _Recompute:
    """Recomputes valid claims and personas from scratch, without the stage's intermediate results."""

    def __init__(self, config: ConfigDict):
        self._settings, self._count = config.personas, token_counter(config)

    def history(self, claims: Iterable[Claim]) -> list[State]:
        """Return the claims that are valid at each step: first the empty state, then the state after each claim."""
        return states(oldest_first(claims), max_claims=self._settings.max_claims)

    def persona(self, state: State) -> str:
        """Return the persona made from valid claims."""
        texts = [claim['text'] for claim in state]
        return persona(texts, max_tokens=self._settings.max_tokens, count=self._count)


def _has_the_fields(claim: Record) -> bool:
    return claim.keys() == Claim.__annotations__.keys()


def _broken_claim(claim: Record, author: Author, corrections: Corrections, level: str) -> str:
    """Return a description of the rule that a stored claim breaks, or '' if it breaks none."""
    if not _has_the_fields(claim):
        return 'its fields are not the fields of a claim'
    conversation = author.conversations.get(claim['conversation'])
    if conversation is None:
        return 'its conversation is not in config.data.conversations'
    name, turn_index, messages = conversation['id'], claim['turn_index'], conversation['messages']
    if not 0 < turn_index < len(messages) or claim['id'] != turn_id(name, turn_index):
        return 'its turn is not in its conversation'
    turn = messages[turn_index]
    if turn['role'] != 'user' or not claim['quote'] or claim['quote'] not in turn['content']:
        return 'the quote is not in the turn'
    if (claim['user_id'], claim['said_at']) != (conversation['user_id'], conversation['ended']):
        return "its user or time differs from the conversation's"
    if corrections.deletes(claim):
        return 'it should have been deleted'
    if (claim['text'] if claim['edited'] else None) != corrections.texts.get(claim['id']):
        return 'its text does not match the corrections'
    if claim['edited']:
        return edit_fault(claim['text'])
    return fault(claim['text'], claim['quote'], author.text_before(claim), level)


def _broken_order(author: Author, claims: Sequence[Claim]) -> Iterator[str]:
    """Yield a message if claims are not in the order of their turns, or if a claim is stored twice."""
    turns = (
        turn_id(conversation['id'], turn_index)
        for conversation in author.conversations.values()
        for turn_index in range(len(conversation['messages']))
    )
    if not all(claim['id'] in turns for claim in claims):  # `in` consumes the turns up to the turn of each claim
        yield f'{CLAIMS}: claims from {claims[0]["conversation"]} or the same user are out of order or stored twice'


def _broken_user(author: Author, claims: Sequence[Claim], user: Record | None, recompute: _Recompute) -> Iterator[str]:
    """Yield a message for each fault in a known user's record in the store."""
    if user is None or user['user_id'] != author.user_id:
        yield f'{USERS}: the users are not those in the conversations, starting with {author.user_id}'
        return
    history = recompute.history(claims)
    expected = UserPersona(user_id=author.user_id, persona=recompute.persona(history[-1]), versions=versions(history))
    if user != expected:
        yield f'user {author.user_id}: persona or versions do not follow from the claims'
    texts = [claim['text'] for claim in history[-1]]
    if any(contradicts(one, other) for one, other in itertools.combinations(texts, 2)):
        yield f'user {author.user_id}: two valid claims contradict each other'


def _broken_turns(
    config: ConfigDict, author: Author, claims: Sequence[Claim], records: Sequence[Record], recompute: _Recompute
) -> Iterator[str]:
    """Yield a message for each fault in the personas at an author's turns."""
    known_at = SCOPES[config.personas.scope].known_at
    known: dict[str, list[Claim]] = {}
    for conversation in author.conversations.values():
        for turn_index in user_turn_indices(conversation['messages']):
            at_turn = known_at(conversation, turn_index, claims, config.personas)
            if at_turn is not None:
                known[turn_id(conversation['id'], turn_index)] = at_turn
    if [record['id'] for record in records] != list(known):
        yield f'{RECORDS}: wrong turns in {next(iter(author.conversations))} or in later conversations of its user'
    for record in records:
        if (turn := record['id']) not in known:
            continue
        state = recompute.history(known[turn])[-1]
        if record != TurnPersona(id=turn, persona=recompute.persona(state)):
            yield f'turn {turn}: the persona does not follow from the claims known before it'
