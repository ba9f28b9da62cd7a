"""Look at the persona store and mend it.

    python -m data_pipelines.persona_store show   --config=configs/NAME.py [--user=ID] [--claim=ID]
    python -m data_pipelines.persona_store edit   --config=configs/NAME.py --claim=ID --text='I like short answers.'
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --claim=ID
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --user=ID
    python -m data_pipelines.persona_store audit  --config=configs/NAME.py

The store is the folder `config.data.personas`. `show` prints users' personas, their claims with where they come from,
and how they came about. What is deleted or edited is noted in a file of corrections beside the folder
(`config.personas.corrections`), which the stage applies whenever it runs, and applied to the folder at once: a deleted
user has no claims, whatever they say later. An edit must pass the audit that the teacher's claims pass. Stages that
read personas then have to run again, and say so. `audit` checks the files as they lie there, prints figures, and ends
with status 1 if any of them breaks a rule.
"""

import dataclasses
import functools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.claim_audit import fault
from data_pipelines.claims import Claim, age, contradicts, persona, said_before, step
from data_pipelines.personas import (
    CLAIMS,
    STAGE,
    USERS,
    corrected,
    corrections_path,
    identity,
    read_corrections,
    token_counter,
    write_store,
)
from data_pipelines.stage import RECORDS, Record, input_folder, load_records, read_records
from rlhi_jax import errors
from rlhi_jax.config import define_config_flag, load_config
from rlhi_jax.errors import UserError
from rlhi_jax.files import read_json, write_bytes

COMMANDS = ('show', 'edit', 'delete', 'audit')
MAX_SHOWN = 20  # broken rules that are printed


def show(config: ConfigDict, *, user: str = '', claim: str = '') -> str:
    """Personas, claims and versions in words: of one user, of one claim, or of everybody who has claims.

    Raises:
      UserError: nobody and nothing is called so.
    """
    folder = input_folder(config, 'personas')
    claims = {each['id']: each for each in load_records(folder / CLAIMS)}
    if claim:
        return _claim_in_words(_named(claims, claim, '--claim', folder))
    users = {each['user_id']: each for each in load_records(folder / USERS)}
    chosen = [_named(users, user, '--user', folder)] if user else [each for each in users.values() if each['versions']]
    parts = []
    for each in chosen:
        own = [claim for claim in claims.values() if claim['user_id'] == each['user_id']]
        parts += [f'{each["user_id"]}: {each["persona"] or "(no persona)"}', *map(_claim_in_words, own)]
        for version in each['versions']:
            held = '; '.join(claims[name]['text'] for name in reversed(version['claims']))
            parts.append(f'  since {version["since"]} ({version["at"] or "no time"}): {held}')
    if not user:
        parts += [_claim_in_words(claim) for claim in claims.values() if not claim['user_id']]
    return '\n'.join(parts) or f'{folder}: no claims'


def _named(found: dict[str, Record], name: str, flag: str, folder: Path) -> Record:
    if name not in found:
        raise UserError(f'{flag}={name}: {folder} knows none of that name; `show` without it lists them')
    return found[name]


def _claim_in_words(claim: Claim) -> str:
    edited = ', edited' if claim['edited'] else ''
    return (
        f'  claim {claim["id"]} ({claim["said_at"] or "no time"}{edited}): {claim["text"]}\n    from {claim["quote"]!r}'
    )


def correct(config: ConfigDict, correction: dict[str, str]) -> dict[str, int]:
    """Note a correction and apply it to the store; returns the store's counts.

    Raises:
      UserError: it is of nothing that is stored, would store what breaks a rule, or the store is out of date.
    """
    folder, path = input_folder(config, 'personas'), corrections_path(config)
    made_from = read_json(folder / 'manifest.json', 'run the stage again', fields=['made_from', 'counts'])['made_from']
    if made_from != identity(config):
        raise UserError(f'config.data.personas: {folder} was made from other input or settings: run the stage again')
    claims, talks = load_records(folder / CLAIMS), read_records(config, 'conversations')
    if user := correction.get('delete_user'):
        _named({each['user_id']: each for each in load_records(folder / USERS)}, user, '--user', folder)
    else:
        claim = correction.get('delete_claim') or correction['edit_claim']
        _named({each['id']: each for each in claims}, claim, '--claim', folder)
    before = path.read_bytes().splitlines() if path.exists() else []
    line = json.dumps(correction, ensure_ascii=False, sort_keys=True).encode()
    by_id = {talk['id']: talk for talk in talks}
    new = path.with_name(f'.{path.name}.new')
    write_bytes(new, b''.join(each + b'\n' for each in (*before, line)))
    try:
        kept = corrected(claims, by_id, read_corrections(new))
        new.chmod(0o600)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    rebuild = functools.partial(_rebuild, talks=talks, claims=kept, deleted=len(claims) - len(kept))
    return dataclasses.replace(STAGE, work=rebuild).run(config, overwrite=True)


def _rebuild(
    config: ConfigDict, folder: Path, *, talks: list[Record], claims: list[Claim], deleted: int
) -> dict[str, int]:
    before = read_json(input_folder(config, 'personas') / 'manifest.json', 'run the stage again')['counts']
    kept = ('remarks', 'remarks_do_not_fit', 'deleted')
    counts = Counter({name: n for name, n in before.items() if name in kept or name.startswith('dropped_')})
    counts['deleted'] += deleted
    return write_store(config, folder, talks, claims, counts)


def audit(config: ConfigDict) -> tuple[dict[str, Any], list[str]]:
    """Figures of the store as it lies on disk, and what in it breaks a rule.

    Everything is checked against the conversations: that each claim comes from a turn that was kept, in its own words,
    and passes the rules; and that each persona is what the claims before it amount to, found one by one.
    """
    folder, p = input_folder(config, 'personas'), config.personas
    talks = {talk['id']: talk for talk in read_records(config, 'conversations')}
    claims, users = load_records(folder / CLAIMS), load_records(folder / USERS)
    corrections, count = read_corrections(corrections_path(config)), token_counter(config)
    broken = [f'claim {claim["id"]}: {reason}' for claim in claims if (reason := _broken(claim, talks, corrections))]
    if len({claim['id'] for claim in claims}) < len(claims):
        broken.append(f'{CLAIMS}: a claim stands there twice')

    def amounts_to(known: list[Claim]) -> tuple[str, list[Claim]]:
        once = functools.partial(step, max_claims=p.max_claims)
        state = functools.reduce(once, sorted(known, key=age), ())
        return persona(state, max_tokens=p.max_tokens, count=count), list(state)

    of_user: dict[str, list[Claim]] = {}
    for claim in claims:
        of_user.setdefault(claim['user_id'], []).append(claim)
    for user in users:
        said, state = amounts_to(of_user.get(user['user_id'], []))
        last = user['versions'][-1]['claims'] if user['versions'] else []
        if user['persona'] != said or last != [claim['id'] for claim in state]:
            broken.append(f'user {user["user_id"]}: the persona is not what the claims amount to')
        if any(contradicts(one['text'], other['text']) for n, one in enumerate(state) for other in state[:n]):
            broken.append(f'user {user["user_id"]}: two claims that hold contradict each other')
    expected = dict(_turns(config, talks, claims))
    stored = {record['id']: record['persona'] for record in load_records(folder / RECORDS)}
    if stored.keys() != expected.keys():
        broken.append(f'{RECORDS}: not the turns that may be mined')
    for name in sorted(stored.keys() & expected.keys()):
        if stored[name] != amounts_to(expected[name])[0]:
            broken.append(f'turn {name}: the persona is not what was known before it')
    counts = read_json(folder / 'manifest.json', 'run the stage again', fields=['counts'])['counts']
    written = counts['claims'] + counts.get('dropped_unsupported', 0)
    figures = dict(
        users=len(users),
        users_without_persona=sum(not user['persona'] for user in users),
        claims=len(claims),
        claims_per_user=len(claims) / max(1, len(of_user.keys() - {''})),
        edited=sum(claim['edited'] for claim in claims),
        supported=counts['claims'] / max(1, written),
        contradictions_resolved=counts.get('contradicted', 0),
        repetitions_resolved=counts.get('repeated', 0),
        turns=len(stored),
        turns_with_persona=sum(map(bool, stored.values())),
        dropped={name.removeprefix('dropped_'): n for name, n in counts.items() if name.startswith('dropped_')},
        broken=len(broken),
    )
    return figures, broken


def _broken(claim: Claim, talks: dict[str, Record], corrections) -> str:
    """Which rule a stored claim breaks; '' if none."""
    talk = talks.get(claim['conversation'])
    if talk is None:
        return 'no conversation that was kept'
    if not 0 < claim['place'] < len(talk['messages']) or claim['id'] != f'{talk["id"]}/{claim["place"]}':
        return 'no turn of its conversation'
    turn = talk['messages'][claim['place']]
    if turn['role'] != 'user' or not claim['quote'] or claim['quote'] not in turn['content']:
        return 'the quote is not in the turn'
    if (claim['user_id'], claim['said_at']) != (talk['user_id'], talk['ended']):
        return 'another user or time than the conversation'
    if corrections.deletes(claim):
        return 'it was deleted'
    return fault(claim['text'], claim['quote'], said_before(talk, claim['place']))


def _turns(config: ConfigDict, talks: dict[str, Record], claims: list[Claim]) -> Iterator[tuple[str, list[Claim]]]:
    """Each turn that may be mined, with the claims that a persona may know there."""
    p, by_owner = config.personas, {}
    earlier = p.scope == 'earlier_conversations'
    for claim in claims:
        by_owner.setdefault(claim['user_id'] if earlier else claim['conversation'], []).append(claim)
    for talk in talks.values():
        own = by_owner.get(talk['user_id'] if earlier else talk['id'], []) if talk['user_id'] or not earlier else []
        if earlier:
            known = [claim for claim in own if claim['said_at'] and claim['said_at'] < talk['began']]
        else:
            known = [claim for claim in own if claim['place'] // 2 < p.first_k]
        for place in range(0, len(talk['messages']), 2):
            if earlier or place // 2 >= p.first_k:
                yield f'{talk["id"]}/{place}', known


def main(command: str) -> None:
    config = load_config(flags.FLAGS.config)
    user, claim, text = flags.FLAGS.user, flags.FLAGS.claim, flags.FLAGS.text
    if command == 'show':
        print(show(config, user=user, claim=claim))
    elif command == 'edit':
        if not claim or not text:
            raise UserError('edit needs --claim=ID and --text=TEXT')
        correct(config, dict(edit_claim=claim, text=text))
    elif command == 'delete':
        if bool(claim) == bool(user):
            raise UserError('delete needs --claim=ID or --user=ID')
        correct(config, dict(delete_user=user) if user else dict(delete_claim=claim))
    else:
        figures, broken = audit(config)
        print(json.dumps(figures, indent=2))
        if broken:
            print('\n'.join(broken[:MAX_SHOWN]), file=sys.stderr, flush=True)
            sys.exit(1)


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_string('user', '', 'show, delete: whose.')
    flags.DEFINE_string('claim', '', 'show, edit, delete: a claim by its id.')
    flags.DEFINE_string('text', '', 'edit: what it is to say.')
    errors.run(main, commands=COMMANDS)
