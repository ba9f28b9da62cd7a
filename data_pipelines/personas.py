"""Users' feedback → personas in words, from strictly earlier turns.

    python -m data_pipelines.personas --config=configs/NAME.py

`config.personas.scope` says which turns a persona may know: those of the same user's 'earlier_conversations', which had
ended when this one began, or the 'first_k_turns' of the same conversation, where users have no ids (pairs are then
mined from later turns only). Writes records.jsonl with the persona of every user turn that may be mined, and
users.jsonl with what each user's whole history says.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.generation import generate, model_identity
from data_pipelines.prompts import prompt_digest, render_turns
from data_pipelines.stage import Record, Stage, input_digest, input_folder, load_records, read_records, write_records
from rlhi_jax.config import teacher_path
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest
from rlhi_jax.generate import Prompt

USERS = 'users.jsonl'


def remarks_before(
    talks: list[Record], feedback: dict[str, list[tuple[int, str]]], *, scope: str, first_k: int
) -> dict[str, tuple[str, ...]]:
    """What each user turn's author had said about replies before it, by turn (`CONVERSATION/PLACE`), oldest first.

    Turns that may not be mined under the scope are left out.
    """
    remarks: dict[str, tuple[str, ...]] = {}
    history: dict[str, list[Record]] = defaultdict(list)
    for talk in sorted(talks, key=lambda talk: (talk['ended'], talk['id'])):
        if talk['user_id'] and talk['ended']:
            history[talk['user_id']].append(talk)
    for talk in talks:
        own = feedback.get(talk['id'], [])
        earlier = [other['id'] for other in history[talk['user_id']] if other['ended'] < talk['began']]
        for place in range(0, len(talk['messages']), 2):
            name = f'{talk["id"]}/{place}'
            if scope == 'earlier_conversations':
                remarks[name] = tuple(text for other in earlier for _, text in feedback.get(other, []))
            elif place // 2 >= first_k:
                remarks[name] = tuple(text for at, text in own if at // 2 < first_k)
    return remarks


def of_users(config: ConfigDict) -> dict[str, str]:
    """The persona of each user's whole history, by user id, from the finished stage."""
    return {user['user_id']: user['persona'] for user in load_records(input_folder(config, 'personas') / USERS)}


def of_users_digest(config: ConfigDict) -> str:
    """Identifies what `of_users` reads."""
    return file_digest(input_folder(config, 'personas') / USERS)


def _identity(config: ConfigDict) -> dict[str, Any]:
    return dict(
        inputs=[input_digest(config, key) for key in ('conversations', 'follow_ups')],
        teacher=model_identity(config, teacher_path(config)),
        prompt=prompt_digest('persona'),
        settings=config.personas.to_dict(),
        sampler=config.sampler.to_dict(),
        seed=config.seed,
    )


def write_personas(
    config: ConfigDict, folder: Path, wanted: set[tuple[str, ...]], counts: Counter
) -> dict[tuple[str, ...], str]:
    """A persona for each set of remarks, one sentence by the teacher or the remarks themselves; '' for no remarks."""
    recent = {remarks: remarks[-config.personas.max_remarks :] for remarks in wanted}
    if config.personas.writer == 'quotes':
        return {remarks: ' '.join(dict.fromkeys(last)) for remarks, last in recent.items()}
    prompts = {
        digest(last): Prompt(digest(last), turns, keep=len(turns))
        for last in sorted(set(recent.values()))
        if last and (turns := tuple(render_turns('persona', remarks=last)))
    }
    replies = generate(config, folder, _identity(config), teacher_path(config), list(prompts.values()))
    counts['dropped_remarks_do_not_fit'] += sum(not answers for answers in replies.values())
    said = {}
    for name, answers in replies.items():
        first, *rest = answers[0].text.split('\n') if answers else ['']
        if answers and not rest and not answers[0].finished:
            counts['dropped_persona_cut_off'] += 1
            first = ''
        said[name] = first
    return {remarks: said.get(digest(last), '') for remarks, last in recent.items()}


def _work(config: ConfigDict, folder: Path) -> dict[str, int]:
    talks = read_records(config, 'conversations')
    feedback: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for turn in read_records(config, 'follow_ups'):
        if turn['mined']:
            feedback[turn['conversation']].append((turn['place'], turn['follow_up']))
    p = config.personas
    if p.scope == 'earlier_conversations' and not any(talk['user_id'] and talk['began'] for talk in talks):
        raise UserError(
            "config.personas.scope is 'earlier_conversations', but no conversation has a user id and turns with time "
            "stamps: set it to 'first_k_turns', or give the raw data hashed_ip (or user_id) and its turns timestamp"
        )
    before = remarks_before(talks, feedback, scope=p.scope, first_k=p.first_k)
    after: dict[str, list[str]] = defaultdict(list)
    for talk in sorted(talks, key=lambda talk: (talk['ended'], talk['id'])):
        after[talk['user_id']] += [text for _, text in feedback.get(talk['id'], [])]
    after.pop('', None)
    counts: Counter = Counter()
    written = write_personas(config, folder, {*before.values(), *map(tuple, after.values())}, counts)
    records = [dict(id=name, persona=written[remarks]) for name, remarks in before.items()]
    users = [dict(user_id=user, persona=written[tuple(remarks)]) for user, remarks in sorted(after.items())]
    write_records(folder / USERS, users)
    counts.update(turns=len(records), turns_with_persona=sum(bool(record['persona']) for record in records))
    counts.update(users=len(users), users_with_persona=sum(bool(user['persona']) for user in users))
    return STAGE.write(config, folder, records, counts)


STAGE = Stage('personas', _work, 'data.personas', _identity)

if __name__ == '__main__':
    STAGE.main()
