"""Shows, corrects and audits the persona store.

    python -m data_pipelines.persona_store show   --config=configs/NAME.py [--user=ID] [--claim=ID]
    python -m data_pipelines.persona_store edit   --config=configs/NAME.py --claim=ID --text='I like short answers.'
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --claim=ID
    python -m data_pipelines.persona_store delete --config=configs/NAME.py --user=ID
    python -m data_pipelines.persona_store audit  --config=configs/NAME.py

The store is the folder `config.data.personas`. With --workdir=DIR, it is the personas folder of the loop in DIR.

- `show` prints each user's persona, followed by the user's claims. Each claim is shown with its id, its time and the
  remark that it was made from. The last lines list the claims that each conversation added (+) and removed (−).
- `edit` and `delete` apply a correction to the store immediately. They also add it to the file
  `config.personas.corrections` (by default next to the store), which the stage `personas` applies whenever it runs. A
  deleted user gets no claims from later turns either. An edited claim need not follow from its remark, but it must not
  mention private or sensitive matters. After a correction, the output of stages that read personas is out of date. To
  make this output again, run the loop with --redo.
- `audit` checks the files on disk, prints statistics, and exits with status 1 if a rule is broken.
"""

from absl import flags

from rlhi_jax.cli.program import define_config_flag, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_string(
        'workdir', None, 'Workdir of a loop; needed only if the config does not set the folders of the stages.'
    )
    flags.DEFINE_string('user', '', 'Id of the user to show or delete.')
    flags.DEFINE_string('claim', '', 'Id of the claim to show, edit or delete.')
    flags.DEFINE_string('text', '', 'New text for the claim to edit.')
    COMMAND = start(commands=('show', 'edit', 'delete', 'audit'))

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, authors
from data_pipelines.core.inputs import input_folder
from data_pipelines.core.passes import exhaust
from data_pipelines.core.record_files import as_line, stream_records
from data_pipelines.core.records import Claim, Record, UserPersona
from data_pipelines.core.stage import Task
from data_pipelines.persona.corrections import corrected, corrections_path, read_corrections
from data_pipelines.persona.stage import personas_stage
from data_pipelines.persona.store import CLAIMS, COUNTED, USERS, write_store
from data_pipelines.persona.store_audit import audit
from data_pipelines.reports.excerpts import readable
from rlhi_jax.config.loop_paths import with_paths
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import locked, new_file, read_json

MAX_SHOWN = 20  # maximum number of broken rules to print


def show(config: ConfigDict, *, user: str = '', claim: str = '') -> str:
    """Return a description of one claim, of one user or, if neither is given, of everyone with claims.

    The description of a user consists of the persona, the claims, and how each conversation changed the valid claims.

    Raises:
      UserError: the store has no such user or claim.
    """
    folder = input_folder(config, 'personas')
    if claim:
        return _claim_in_words(_record_named(folder / CLAIMS, 'id', claim, '--claim'))
    users = [_record_named(folder / USERS, 'user_id', user, '--user')] if user else stream_records(folder / USERS)
    by_user: dict[str, list[Claim]] = {}
    for each in stream_records(folder / CLAIMS):
        if not user or each['user_id'] == user:
            by_user.setdefault(each['user_id'], []).append(each)
    parts = []
    for each in users:
        if user or each['versions']:
            persona = f'{each["user_id"]}: {readable(each["persona"]) or "(no persona)"}'
            parts.append([persona, *map(_claim_in_words, by_user.get(each['user_id'], [])), *_changes(each)])
    if not user and '' in by_user:
        parts.append(['Users without an id:', *map(_claim_in_words, by_user[''])])
    return '\n\n'.join(map('\n'.join, parts)) or f'{folder}: no claims'


def _changes(user: UserPersona) -> Iterator[str]:
    """Yield a line for each version of a user's persona, with the claims that it added and removed."""
    before: list[str] = []
    for version in user['versions']:
        added = [f'+{name}' for name in version['claims'] if name not in before]
        removed = [f'−{name}' for name in before if name not in version['claims']]
        before = version['claims']
        yield f'  since {version["since"]} ({version["at"] or "no time"}): {", ".join(added + removed)}'


def _record_named(path: Path, field: str, name: str, flag: str) -> Record:
    """Return a file's first record whose `field` equals `name`."""
    for record in stream_records(path):
        if record[field] == name:
            return record
    keys = ' (if ids are salted, `python -m data_pipelines.users` prints the key of a user)' if flag == '--user' else ''
    raise UserError(f'{flag}={name} is not in {path}: run `show` without {flag} to list all records{keys}')


def _claim_in_words(claim: Claim) -> str:
    text, quote = readable(claim['text']), readable(claim['quote'])
    about = [f'said {claim["said_at"]}' if claim['said_at'] else 'no time']
    about += ['edited'] * claim['edited'] + ['verbatim'] * (text == quote)
    line = f'  claim {claim["id"]} ({", ".join(about)}): {text}'
    return line if text == quote else f'{line}\n    from {quote!r}'


def correct(config: ConfigDict, correction: dict[str, str]) -> dict[str, int]:
    """Add a correction to the file of corrections, apply it to the store, and return the store's counts.

    The store is then the same as if the stage `personas` had run with this correction. Only the counts of the teacher's
    answers can differ, because the stage would not ask the teacher about deleted remarks.

    Raises:
      UserError: the store does not contain the user or claim, is out of date, or is being corrected by another process;
        or the new text breaks a rule.
    """
    folder = input_folder(config, 'personas')
    lock = locked(folder)
    try:
        _add_correction(config, folder, correction)
        return REBUILD.run(config, overwrite=True)
    finally:
        os.close(lock)


def _add_correction(config: ConfigDict, folder: Path, correction: dict[str, str]) -> None:
    """Add a correction to the file of corrections, or raise a UserError if the correction cannot be applied."""
    path = corrections_path(config)
    made_from = read_json(folder / 'manifest.json', "rerun the 'personas' stage", fields=['made_from', 'counts'])[
        'made_from'
    ]
    if made_from != REBUILD.made_from(config):
        raise UserError(
            f"config.data.personas: {folder} was made with different input or settings: rerun the 'personas' stage"
        )
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
    """Yield every author with the claims that are left in the store after applying the corrections at `path`."""
    corrections = read_corrections(path)
    for author in authors(config, input_folder(config, 'personas') / CLAIMS):
        yield author, corrected(*author.records, corrections, counts)


def _rebuild(task: Task) -> dict[str, int]:
    """Rebuild the store from its corrected claims. Counts that do not depend on the claims are carried over."""
    manifest = read_json(input_folder(task.config, 'personas') / 'manifest.json', "rerun the 'personas' stage")
    before = Counter(manifest['counts'])
    before['remarks'] -= manifest.get('forgotten', {}).get(CLAIMS, 0)  # each lost claim was made from one remark
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
            raise UserError('edit needs a claim and its new text: pass --claim=ID and --text=TEXT')
        correct(config, dict(edit_claim=claim, text=text))
    elif command == 'delete':
        if bool(claim) == bool(user):
            raise UserError('delete needs either a claim or a user: pass either --claim=ID or --user=ID')
        correct(config, dict(delete_user=user) if user else dict(delete_claim=claim))
    else:
        figures, broken = audit(config)
        print(json.dumps(figures, indent=2))
        if broken:
            print('\n'.join(broken[:MAX_SHOWN]), file=sys.stderr, flush=True)
            sys.exit(1)


if __name__ == '__main__':
    run(lambda: main(COMMAND))
