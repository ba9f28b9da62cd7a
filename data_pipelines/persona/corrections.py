"""Corrections of the persona store: users and claims that people deleted, and claims that they put otherwise."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author
from data_pipelines.persona.audit import fault
from data_pipelines.persona.claims import Claim
from rlhi_jax.config.paths import require
from rlhi_jax.io.errors import UserError


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
