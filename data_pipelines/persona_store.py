"""Shows the persona store, corrects it and audits it.

    python -m data_pipelines.persona_store show   --config=configs/NAME.py [--user=ID] [--claim=ID]
    python -m data_pipelines.persona_store edit   --config=configs/NAME.py --claim=ID --text='I like short answers.'
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --claim=ID
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --user=ID
    python -m data_pipelines.persona_store audit  --config=configs/NAME.py

The store is the folder `config.data.personas`, or that of a loop with --workdir=DIR.

- `show` prints each user's persona, its claims with the turns that they come from, and its versions.
- `edit` and `delete` add to the file of corrections beside the folder (`config.personas.corrections`), which the stage
  applies whenever it runs, and apply the correction to the folder at once. A deleted user gets no claims from later
  turns either. An edit must pass the rules that the teacher's claims pass. Stages that read personas then refuse their
  old output until they run again.
- `audit` checks the files on disk, prints figures, and exits with status 1 if a rule is broken.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, authors
from data_pipelines.core.inputs import input_folder
from data_pipelines.core.passes import exhaust
from data_pipelines.core.record_files import as_line, stream_records
from data_pipelines.core.records import Claim, Record
from data_pipelines.core.stage import Task
from data_pipelines.persona.corrections import corrected, corrections_path, read_corrections
from data_pipelines.persona.stage import personas_stage
from data_pipelines.persona.store import CLAIMS, COUNTED, USERS, write_store
from data_pipelines.persona.store_audit import audit
from rlhi_jax.cli.program import define_config_flag, load_config, run, workdir_path
from rlhi_jax.config.loop_paths import with_paths
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import locked, new_file, read_json

COMMANDS = ('show', 'edit', 'delete', 'audit')
MAX_SHOWN = 20  # broken rules to print


def show(config: ConfigDict, *, user: str = '', claim: str = '') -> str:
    """Personas, claims and versions in words: of one user, of one claim, or of everybody who has claims.

    Raises:
      UserError: the store has no such user or claim.
    """
    folder = input_folder(config, 'personas')
    if claim:
        return _claim_in_words(_record_named(folder / CLAIMS, 'id', claim, '--claim'))
    users = [_record_named(folder / USERS, 'user_id', user, '--user')] if user else stream_records(folder / USERS)
    claims = {each['id']: each for each in stream_records(folder / CLAIMS) if not user or each['user_id'] == user}
    by_user: dict[str, list[Claim]] = {}
    for each in claims.values():
        by_user.setdefault(each['user_id'], []).append(each)
    lines = []
    for each in users:
        if not user and not each['versions']:
            continue
        lines.append(f'{each["user_id"]}: {each["persona"] or "(no persona)"}')
        lines += map(_claim_in_words, by_user.get(each['user_id'], []))
        for version in each['versions']:
            texts = [claims[name]['text'] if name in claims else name for name in reversed(version['claims'])]
            lines.append(f'  since {version["since"]} ({version["at"] or "no time"}): {"; ".join(texts)}')
    if not user:
        lines += map(_claim_in_words, by_user.get('', []))
    return '\n'.join(lines) or f'{folder}: no claims'


def _record_named(path: Path, field: str, name: str, flag: str) -> Record:
    """The record of a file that has this name in a field."""
    for record in stream_records(path):
        if record[field] == name:
            return record
    raise UserError(f'{flag}={name}: {path} has no such record: run `show` without it to list them')


def _claim_in_words(claim: Claim) -> str:
    edited = ', edited' if claim['edited'] else ''
    return (
        f'  claim {claim["id"]} ({claim["said_at"] or "no time"}{edited}): {claim["text"]}\n    from {claim["quote"]!r}'
    )


def correct(config: ConfigDict, correction: dict[str, str]) -> dict[str, int]:
    """Add a correction to the file of corrections and apply it to the store; returns the store's counts.

    The folder becomes what the stage would make with the correction. Only counts of the teacher's answers can differ,
    since the stage does not ask the teacher about deleted remarks.

    Raises:
      UserError: the store lacks the user or claim, is out of date, or is being corrected by another process; or the new
        text breaks a rule.
    """
    folder = input_folder(config, 'personas')
    lock = locked(folder)
    try:
        _add_correction(config, folder, correction)
        return REBUILD.run(config, overwrite=True)
    finally:
        os.close(lock)


def _add_correction(config: ConfigDict, folder: Path, correction: dict[str, str]) -> None:
    """Add a correction to the file of corrections, if it can be applied."""
    path = corrections_path(config)
    made_from = read_json(folder / 'manifest.json', 'run the stage again', fields=['made_from', 'counts'])['made_from']
    if made_from != REBUILD.made_from(config):
        raise UserError(f'config.data.personas: {folder} was made from other input or settings: run the stage again')
    if user := correction.get('delete_user'):
        _record_named(folder / USERS, 'user_id', user, '--user')
    else:
        claim = correction.get('delete_claim') or correction['edit_claim']
        _record_named(folder / CLAIMS, 'id', claim, '--claim')
    lines = path.read_bytes().splitlines() if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, private=True) as file:
        file.writelines([*(line + b'\n' for line in lines), as_line(correction)])
        file.flush()
        exhaust(_corrected_claims(config, Path(file.name), Counter()))


def _corrected_claims(config: ConfigDict, path: Path, counts: Counter) -> Iterator[tuple[Author, list[Claim]]]:
    """Every author with their stored claims, corrected by a file of corrections."""
    corrections = read_corrections(path)
    for author in authors(config, input_folder(config, 'personas') / CLAIMS):
        yield author, corrected(author, *author.records, corrections, counts)


def _rebuild(task: Task) -> dict[str, int]:
    """Write the store again from its own claims, corrected; counts that these do not determine stay as they were."""
    manifest = read_json(input_folder(task.config, 'personas') / 'manifest.json', 'run the stage again')
    before = Counter(manifest['counts'])
    before['remarks'] -= manifest.get('forgotten', {}).get(CLAIMS, 0)  # the claims of forgotten remarks are gone
    staying = ('remarks', 'remarks_without_answer', 'deleted')
    counts = Counter(
        {name: n for name, n in before.items() if name in staying or name.startswith(('dropped_', 'teacher_'))}
    )
    counts.update(dict.fromkeys(COUNTED, 0))
    return write_store(task, _corrected_claims(task.config, corrections_path(task.config), counts), counts)


REBUILD = personas_stage(_rebuild)


def main(command: str) -> None:
    config = load_config(flags.FLAGS.config)
    if flags.FLAGS.workdir:
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
    flags.DEFINE_string('workdir', None, "The workdir of a loop, if the config does not name the stages' folders.")
    flags.DEFINE_string('user', '', 'show, delete: a user by id.')
    flags.DEFINE_string('claim', '', 'show, edit, delete: a claim by id.')
    flags.DEFINE_string('text', '', 'edit: its new text.')
    run(main, commands=COMMANDS)
