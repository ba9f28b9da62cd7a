"""Look at the persona store and mend it.

    python -m data_pipelines.persona_store show   --config=configs/NAME.py [--user=ID] [--claim=ID]
    python -m data_pipelines.persona_store edit   --config=configs/NAME.py --claim=ID --text='I like short answers.'
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --claim=ID
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --user=ID
    python -m data_pipelines.persona_store audit  --config=configs/NAME.py

The store is the folder `config.data.personas`, or that of a loop with --workdir=DIR. `show` prints users' personas,
their claims with where they come from, and how they came about. What is deleted or edited is noted in a file of
corrections beside the folder (`config.personas.corrections`), which the stage applies whenever it runs, and applied to
the folder at once: a deleted user has no claims, whatever they say later. An edit must pass the audit that the
teacher's claims pass. Stages that read personas then have to run again, and say so. `audit` checks the files as they
lie there, prints figures, and ends with status 1 if any of them breaks a rule.
"""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, authors
from data_pipelines.core.stage import RECORDS, Record, Task, as_line, exhaust, input_folder, stream_records
from data_pipelines.persona.audit import fault
from data_pipelines.persona.claims import FIELDS, Claim, State, contradicts, oldest_first, persona, states, versions
from data_pipelines.persona.corrections import Corrections, corrected, corrections_path, read_corrections
from data_pipelines.persona.store import CLAIMS, COUNTED, USERS, token_counter, write_store
from data_pipelines.personas import STAGE
from rlhi_jax.cli.program import define_config_flag, load_config, run, workdir_path
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import locked, new_file, read_json

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
            held = '; '.join(claims[name]['text'] if name in claims else name for name in reversed(version['claims']))
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

    The folder is what the stage would make of the correction. Only counts of what a teacher said can differ: run again,
    the stage does not ask about what was deleted.

    Raises:
      UserError: it is of nothing that is stored, would store what breaks a rule, or the store is out of date or is
        being corrected by somebody else.
    """
    folder = input_folder(config, 'personas')
    lock = locked(folder)
    try:
        _note(config, folder, correction)
        return dataclasses.replace(STAGE, work=_rebuild).run(config, overwrite=True)
    finally:
        os.close(lock)


def _note(config: ConfigDict, folder: Path, correction: dict[str, str]) -> None:
    """Add a correction to the file of corrections, if it can be applied."""
    path = corrections_path(config)
    made_from = read_json(folder / 'manifest.json', 'run the stage again', fields=['made_from', 'counts'])['made_from']
    if made_from != STAGE.made_from(config):
        raise UserError(f'config.data.personas: {folder} was made from other input or settings: run the stage again')
    if user := correction.get('delete_user'):
        _named(folder / USERS, 'user_id', user, '--user')
    else:
        claim = correction.get('delete_claim') or correction['edit_claim']
        _named(folder / CLAIMS, 'id', claim, '--claim')
    before = path.read_bytes().splitlines() if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, private=True) as file:
        file.writelines([*(each + b'\n' for each in before), as_line(correction)])
        file.flush()
        exhaust(_corrected(config, Path(file.name), Counter()))


def _corrected(config: ConfigDict, corrections: Path, counts: Counter) -> Iterator[tuple[Author, list[Claim]]]:
    """Everybody with what is left of their stored claims."""
    wanted = read_corrections(corrections)
    for author in authors(config, input_folder(config, 'personas') / CLAIMS):
        yield author, corrected(author, *author.of, wanted, counts)


def _rebuild(task: Task) -> dict[str, int]:
    """Write the store again from its own claims, corrected; what is not known from them keeps its count."""
    manifest = read_json(input_folder(task.config, 'personas') / 'manifest.json', 'run the stage again')
    before = Counter(manifest['counts'])
    before['remarks'] -= manifest.get('forgotten', {}).get(CLAIMS, 0)  # no longer here to be counted
    kept = ('remarks', 'remarks_without_answer', 'deleted')
    counts = Counter(
        {name: n for name, n in before.items() if name in kept or name.startswith(('dropped_', 'teacher_'))}
    )
    counts.update(dict.fromkeys(COUNTED, 0))
    return write_store(task, _corrected(task.config, corrections_path(task.config), counts), counts)


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
        broken += [f'claim {claim["id"]}: {why}' for claim in claims if (why := _broken(claim, author, corrections))]
        claims = [claim for claim in claims if claim.keys() == FIELDS]
        found.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
        turns = (f'{talk["id"]}/{place}' for talk in author.talks.values() for place in range(len(talk['messages'])))
        if not all(claim['id'] in turns for claim in claims):  # each is looked for behind the one before it
            broken.append(
                f'{CLAIMS}: those of {claims[0]["conversation"]} or of the same user are not in order, or twice'
            )
        if author.user_id:
            user = next(users, None)
            broken += _broken_user(author, claims, user, said_in)
            found.update(users=1, without_persona=not (user and user.get('persona')))
            found.update(users_with_claims=bool(claims), claims_of_users=len(claims))
        expected = dict(_turns(config, author, claims))
        if [record['id'] for record in at_turns] != list(expected):
            broken.append(f'{RECORDS}: not the turns of {next(iter(author.talks))} that may be mined')
        for record in at_turns:
            name = record['id']
            if name in expected and record != dict(id=name, persona=said_in(expected[name])[0]):
                broken.append(f'turn {name}: the persona is not what was known before it')
        found.update(turns=len(at_turns), with_persona=sum(bool(record.get('persona')) for record in at_turns))
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
    """What claims amount to, found one by one: the text, and what held after each."""

    def __init__(self, config: ConfigDict):
        self._settings, self._count = config.personas, token_counter(config)

    def __call__(self, known: Iterable[Claim]) -> tuple[str, list[State]]:
        history = states(oldest_first(known), max_claims=self._settings.max_claims)
        return persona(history[-1], max_tokens=self._settings.max_tokens, count=self._count), history


def _broken(claim: Claim, author: Author, corrections: Corrections) -> str:
    """Which rule a stored claim breaks; '' if none."""
    if claim.keys() != FIELDS:
        return 'its fields are not those of a claim'
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
    if (claim['text'] if claim['edited'] else None) != corrections.texts.get(claim['id']):
        return 'it is not as it was corrected'
    return fault(claim['text'], claim['quote'], author.before(claim))


def _broken_user(author: Author, claims: list[Claim], user: Record | None, said_in: _Persona) -> list[str]:
    """What is wrong with the record of an author who is a user."""
    if user is None or user['user_id'] != author.user_id:
        return [f'{USERS}: not the users of the conversations, from {author.user_id} on']
    broken, (said, history) = [], said_in(claims)
    if user != dict(user_id=author.user_id, persona=said, versions=versions(history)):
        broken.append(f'user {author.user_id}: persona or versions are not what the claims amount to')
    state = history[-1]
    if any(contradicts(one['text'], other['text']) for n, one in enumerate(state) for other in state[:n]):
        broken.append(f'user {author.user_id}: two claims that hold contradict each other')
    return broken


def _turns(config: ConfigDict, author: Author, claims: list[Claim]) -> Iterator[tuple[str, list[Claim]]]:
    """Each of an author's turns that may be mined, with the claims that a persona may know there."""
    p = config.personas
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
    if flags.FLAGS.workdir:
        from rlhi_jax.loop import with_paths  # all stages, for seconds: not for those who name folders

        config = with_paths(config, workdir_path(flags.FLAGS.workdir))
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
    flags.DEFINE_string('workdir', None, "A loop's folder, if the config does not name the stages' own.")
    flags.DEFINE_string('user', '', 'show, delete: whose.')
    flags.DEFINE_string('claim', '', 'show, edit, delete: a claim by its id.')
    flags.DEFINE_string('text', '', 'edit: what it is to say.')
    run(main, commands=COMMANDS)
