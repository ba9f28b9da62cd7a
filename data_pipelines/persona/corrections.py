"""Corrections of the persona store: users and claims that people deleted, and claims that they reworded."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author
from data_pipelines.core.records import Claim, Remark
from data_pipelines.persona.audit import fault
from rlhi_jax.config.paths import require
from rlhi_jax.io.errors import UserError


class Corrections(NamedTuple):
    """What a file of corrections asks for.

    Attributes:
      users: ids of deleted users.
      claims: ids of deleted claims.
      texts: new texts of reworded claims, by id.
    """

    users: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    texts: dict[str, str] = {}

    def deletes(self, claim: Remark) -> bool:
        """Whether a claim, or the claim that a remark would become, is deleted."""
        return claim['user_id'] in self.users or claim['id'] in self.claims


def corrections_path(config: ConfigDict) -> Path:
    """The file of corrections: outside the store's folder, so that the stage applies it whenever it runs."""
    require(config, 'data.personas')
    folder = Path(config.data.personas)
    return Path(config.personas.corrections or folder.with_name(f'{folder.name}.corrections.jsonl'))


def read_corrections(path: Path) -> Corrections:
    """Read JSON lines {"delete_user": ID}, {"delete_claim": ID} or {"edit_claim": ID, "text": TEXT}.

    A deletion is final; of several edits of one claim the last holds. A missing file holds no corrections.

    Raises:
      UserError: a line is none of these.
    """
    users, claims, texts = set(), set(), {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            match json.loads(line):
                case {'delete_user': str(user), **rest} if user and not rest:
                    users.add(user)
                case {'delete_claim': str(claim), **rest} if not rest:
                    claims.add(claim)
                case {'edit_claim': str(claim), 'text': str(text), **rest} if not rest:
                    texts[claim] = text
                case _:
                    raise ValueError
        except ValueError:
            raise UserError(
                f'{path}, line {number} is not a correction: write {{"delete_user": ID}}, {{"delete_claim": ID}} or '
                '{"edit_claim": ID, "text": TEXT}, or remove the line'
            ) from None
    return Corrections(frozenset(users), frozenset(claims), texts)


def corrected(author: Author, claims: Iterable[Claim], corrections: Corrections, counts: Counter) -> list[Claim]:
    """An author's claims without the deleted ones, which are counted, and with the new texts of reworded ones.

    Raises:
      UserError: a new text breaks a rule of `data_pipelines/persona/audit.py`.
    """
    kept = []
    for claim in claims:
        if corrections.deletes(claim):
            counts['deleted'] += 1
            continue
        if (text := corrections.texts.get(claim['id'])) is not None:
            claim = Claim(**claim | dict(text=text, edited=True))
            if reason := fault(text, claim['quote'], author.text_before(claim)):
                raise UserError(
                    f'the correction of {claim["id"]} to {text!r} cannot be stored ({reason}): word it differently, or '
                    'delete the claim'
                )
        kept.append(claim)
    return kept
