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
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.claim_audit import fault
from data_pipelines.claims import Claim, age, contradicts, persona, step
from data_pipelines.histories import Author, authors
from data_pipelines.personas import (
    CLAIMS,
    COUNTED,
    STAGE,
    USERS,
    Corrections,
    corrected,
    corrections_path,
    identity,
    read_corrections,
    token_counter,
    write_store,
)
from data_pipelines.stage import RECORDS, Record, Task, as_line, input_folder, stream_records
from rlhi_jax import errors
from rlhi_jax.config import define_config_flag, load_config
from rlhi_jax.errors import UserError
from rlhi_jax.files import new_file, read_json

COMMANDS = ('show', 'edit', 'delete', 'audit')
MAX_SHOWN = 20  # broken rules that are printed


def show(config: ConfigDict, *, user: str = '', claim: str = '') -> str:
    """Personas, claims and versions in words: of one user, of one claim, or of everybody who has claims.

    Raises:
      UserError: nobody and nothing is called so.
    """
    folder = input_folder(config, 'personas')
    if claim:
        return _claim_in_words(_named(folder / CLAIMS, 'id', claim, '--claim'))
    chosen = stream_records(folder / USERS)
    if user:
        chosen = [_named(folder / USERS, 'user_id', user, '--user')]
    claims = {each['id']: each for each in stream_records(folder / CLAIMS) if not user or each['user_id'] == user}
    of_user: dict[str, list[Claim]] = {}
    for each in claims.values():
        of_user.setdefault(each['user_id'], []).append(each)
    parts = []
    for each in chosen:
        if not user and not each['versions']:
            continue
        own = of_user.get(each['user_id'], [])
        parts += [f'{each["user_id"]}: {each["persona"] or "(no persona)"}', *map(_claim_in_words, own)]
        for version in each['versions']:
            held = '; '.join(claims[name]['text'] for name in reversed(version['claims']))
            parts.append(f'  since {version["since"]} ({version["at"] or "no time"}): {held}')
    if not user:
        parts += map(_claim_in_words, of_user.get('', []))
    return '\n'.join(parts) or f'{folder}: no claims'


def _named(path: Path, key: str, name: str, flag: str) -> Record:
    """The record of a file that is called so."""
    found = next((record for record in stream_records(path) if record[key] == name), None)
    if found is None:
        raise UserError(f'{flag}={name}: {path} knows none of that name; `show` without it lists them')
    return found


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
    if user := correction.get('delete_user'):
        _named(folder / USERS, 'user_id', user, '--user')
    else:
        claim = correction.get('delete_claim') or correction['edit_claim']
        _named(folder / CLAIMS, 'id', claim, '--claim')
    before = path.read_bytes().splitlines() if path.exists() else []
    with new_file(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.writelines([*(each + b'\n' for each in before), as_line(correction)])
        file.flush()
        corrections = read_corrections(Path(file.name))
        deleted = sum(len(author.of[0]) - len(kept) for author, kept in _corrected(config, corrections))
    rebuild = functools.partial(_rebuild, store=folder, deleted=deleted)
    return dataclasses.replace(STAGE, work=rebuild).run(config, overwrite=True)


def _corrected(config: ConfigDict, corrections: Corrections) -> Iterator[tuple[Author, list[Claim]]]:
    """Everybody with what is left of their stored claims."""
    for author in authors(config, input_folder(config, 'personas') / CLAIMS):
        yield author, corrected(author, *author.of, corrections)


def _rebuild(task: Task, *, store: Path, deleted: int) -> dict[str, int]:
    before = read_json(store / 'manifest.json', 'run the stage again')['counts']
    kept = ('remarks', 'remarks_do_not_fit', 'deleted')
    counts = Counter(
        {name: n for name, n in before.items() if name in kept or name.startswith(('dropped_', 'teacher_'))}
    )
    counts.update(dict.fromkeys(COUNTED, 0), deleted=deleted)
    return write_store(task, _corrected(task.config, read_corrections(corrections_path(task.config))), counts)


def audit(config: ConfigDict) -> tuple[dict[str, Any], list[str]]:
    """Figures of the store as it lies on disk, and what in it breaks a rule.

    Everything is checked against the conversations: that each claim comes from a turn that was kept, in its own words,
    and passes the rules; and that each persona is what the claims before it amount to, found one by one.
    """
    folder = input_folder(config, 'personas')
    corrections, said_in = read_corrections(corrections_path(config)), _Persona(config)
    users, broken, found = stream_records(folder / USERS), [], Counter()
    for author in authors(config, folder / CLAIMS, folder / RECORDS):
        claims, at_turns = author.of
        found.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
        broken += [f'claim {claim["id"]}: {why}' for claim in claims if (why := _broken(claim, author, corrections))]
        if len({claim['id'] for claim in claims}) < len(claims):
            broken.append(f'{CLAIMS}: a claim of {claims[0]["conversation"]} or of the same user stands there twice')
        if author.user_id:
            user = next(users, None)
            broken += _broken_user(author, user, said_in)
            found.update(users=1, without_persona=not (user and user['persona']))
            found.update(users_with_claims=bool(claims), claims_of_users=len(claims))
        stored, expected = {record['id']: record['persona'] for record in at_turns}, dict(_turns(config, author))
        if stored.keys() != expected.keys():
            broken.append(f'{RECORDS}: not the turns of {next(iter(author.talks))} that may be mined')
        for name in sorted(stored.keys() & expected.keys()):
            if stored[name] != said_in(expected[name])[0]:
                broken.append(f'turn {name}: the persona is not what was known before it')
        found.update(turns=len(stored), with_persona=sum(map(bool, stored.values())))
    if next(users, None):
        broken.append(f'{USERS}: more users than the conversations have')
    counts = read_json(folder / 'manifest.json', 'run the stage again', fields=['counts'])['counts']
    written = counts['claims'] + counts.get('dropped_unsupported', 0)
    figures = dict(
        users=found['users'],
        users_without_persona=found['without_persona'],
        claims=found['claims'],
        claims_per_user=found['claims_of_users'] / max(1, found['users_with_claims']),
        edited=found['edited'],
        supported=counts['claims'] / max(1, written),
        contradictions_resolved=counts.get('contradicted', 0),
        repetitions_resolved=counts.get('repeated', 0),
        turns=found['turns'],
        turns_with_persona=found['with_persona'],
        dropped={name.removeprefix('dropped_'): n for name, n in counts.items() if name.startswith('dropped_')},
        broken=len(broken),
    )
    return figures, broken


class _Persona:
    """What claims amount to, found one by one: the text, and those that hold."""

    def __init__(self, config: ConfigDict):
        self._settings, self._count = config.personas, token_counter(config)

    def __call__(self, known: Iterable[Claim]) -> tuple[str, list[Claim]]:
        once = functools.partial(step, max_claims=self._settings.max_claims)
        state = functools.reduce(once, sorted(known, key=age), ())
        return persona(state, max_tokens=self._settings.max_tokens, count=self._count), list(state)


def _broken(claim: Claim, author: Author, corrections: Corrections) -> str:
    """Which rule a stored claim breaks; '' if none."""
    talk = author.talks.get(claim['conversation'])
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
    return fault(claim['text'], claim['quote'], author.before(claim))


def _broken_user(author: Author, user: Record | None, said_in: _Persona) -> list[str]:
    """What is wrong with the record of an author who is a user."""
    if user is None or user['user_id'] != author.user_id:
        return [f'{USERS}: not the users of the conversations, from {author.user_id} on']
    broken, (said, state) = [], said_in(author.of[0])
    last = user['versions'][-1]['claims'] if user['versions'] else []
    if user['persona'] != said or last != [claim['id'] for claim in state]:
        broken.append(f'user {author.user_id}: the persona is not what the claims amount to')
    if any(contradicts(one['text'], other['text']) for n, one in enumerate(state) for other in state[:n]):
        broken.append(f'user {author.user_id}: two claims that hold contradict each other')
    return broken


def _turns(config: ConfigDict, author: Author) -> Iterator[tuple[str, list[Claim]]]:
    """Each of an author's turns that may be mined, with the claims that a persona may know there."""
    p, claims = config.personas, author.of[0]
    earlier = p.scope == 'earlier_conversations'
    for talk in author.talks.values():
        if earlier:
            known = [each for each in claims if author.user_id and each['said_at'] and each['said_at'] < talk['began']]
        else:
            known = [each for each in claims if each['conversation'] == talk['id'] and each['place'] // 2 < p.first_k]
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
