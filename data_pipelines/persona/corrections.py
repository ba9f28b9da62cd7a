"""Reads and applies corrections to the persona store: deleted users, deleted claims and reworded claims."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.records import Claim, Remark
from data_pipelines.persona.audit import edit_fault
from rlhi_jax.config.paths import require
from rlhi_jax.io.errors import UserError


class Corrections(NamedTuple):
    """The contents of a file of corrections.

    Attributes:
      users: ids of deleted users.
      claims: ids of deleted claims.
      texts: new texts of reworded claims, keyed by claim id.
    """

    users: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    texts: dict[str, str] = {}

    def deletes(self, claim: Remark) -> bool:
        """Whether these corrections delete a claim, or the claim that a remark would become."""
        return claim['user_id'] in self.users or claim['id'] in self.claims


def corrections_path(config: ConfigDict) -> Path:
    """Return the path of the corrections file.

    The file is outside the store's folder, so replacing the folder does not remove the file.
    """
    require(config, 'data.personas')
    folder = Path(config.data.personas)
    return Path(config.personas.corrections or folder.with_name(f'{folder.name}.corrections.jsonl'))


def read_corrections(path: Path) -> Corrections:
    """Read a file of corrections. If the file does not exist, there are no corrections.

    Each line has the form {"delete_user": ID}, {"delete_claim": ID} or {"edit_claim": ID, "text": TEXT}. A deletion is
    final. If a claim is edited several times, the last edit counts.

    Raises:
      UserError: a line has none of these forms.
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
                '{"edit_claim": ID, "text": TEXT}'
            ) from None
    return Corrections(frozenset(users), frozenset(claims), texts)


def corrected(claims: Iterable[Claim], corrections: Corrections, counts: Counter) -> list[Claim]:
    """Apply corrections to an author's claims, and return the resulting claims.

    Deleted claims are left out and counted. Reworded claims get their new texts.

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
            if reason := edit_fault(text):
                raise UserError(
                    f'the new text {text!r} for claim {claim["id"]} breaks a rule in docs/personas.md ({reason}): word '
                    'it differently'
                )
        kept.append(claim)
    return kept
