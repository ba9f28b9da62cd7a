"""Simulated users: latent tastes, everyday requests, complaints about what a reply misses. The embedded default source.

    python -m data_pipelines.sources.simulated --config=configs/NAME.py

Writes to `config.data.raw`:

    train.jsonl, gate.jsonl, test.jsonl   conversations in the WildChat-1M schema, replies by `config.model.path`
    users.jsonl                           who they are and what they like: for the evaluator's eyes only
    prompts.jsonl                         further requests of every user, with the oracle persona

Topics, phrasings, wordings of personas and complaints, and combinations of tastes are disjoint between the splits.
Tastes of `config.simulated.held_out` occur in the test split alone. Some users change their mind in mid-history
(`flips`), some want a taste for one kind of request only and the opposite otherwise (`depends`).
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.stage import Record, Stage, Task, write_records
from data_pipelines.simulator.requests import SPLITS
from data_pipelines.simulator.tastes import satisfaction
from data_pipelines.simulator.users import User, asked, complaint, hashed, oracle_persona, population, tastes_at
from data_pipelines.teacher.generation import generate, model_identity
from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Prompt


def conversation_id(user: User, number: int) -> str:
    return digest('conversation', user['id'], number)[:32]


def wildchat_record(user: User, turns: list[tuple[str, str]], number: int, model: str) -> Record:
    """One conversation in the WildChat-1M schema; users come back day by day."""
    moment = (datetime(2026, 1, 1) + timedelta(days=number)).isoformat()
    who = hashed(user['id'])
    header = {'accept-language': 'en-GB', 'user-agent': 'simulated'}
    common = dict(country=None, state=None, hashed_ip=who, header=header, timestamp=moment)
    conversation = [
        dict(common, role=role, content=content, language='English', toxic=False, redacted=False, turn_identifier=place)
        for place, (role, content) in enumerate(turns)
    ]
    return dict(
        conversation_hash=conversation_id(user, number),
        model=model,
        timestamp=moment,
        conversation=conversation,
        turn=sum(role == 'user' for role, _ in turns),
        language='English',
        openai_moderation=[],
        detoxify_moderation=[],
        toxic=False,
        redacted=False,
        state=None,
        country=None,
        hashed_ip=who,
        header=header,
    )


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    return dict(
        population=population(config),
        simulated=config.simulated.to_dict(),
        sampler=config.sampler.to_dict(),
        seed=config.seed,
        model=model_identity(config, config.model.path),
    )


def _work(task: Task) -> dict[str, int]:
    config, folder = task.config, task.folder
    s, users = config.simulated, population(config)
    counts: Counter = Counter(users=len(users))
    turns: dict[str, list[tuple[str, str]]] = {}
    talks = {}
    for user in users:
        for number, request in enumerate(asked(config, user)[: s.conversations]):
            name = f'{user["id"]}/{number}'
            talks[name] = (user, number, request)
            turns[name] = [('user', request.text)]
    prompts = [Prompt(name, tuple(said)) for name, said in turns.items()]
    replies = generate(task, config.model.path, prompts) if prompts else {}
    for name, (user, number, request) in talks.items():
        if not replies[name]:
            raise UserError(
                f'config.sampler.prompt_tokens is {config.sampler.prompt_tokens}: too few for {request.text!r}'
            )
        (reply,) = replies[name]
        counts['replies_cut_off'] += not reply.finished
        tastes = tastes_at(user, number, s.conversations, request)
        counts['replies_satisfying'] += satisfaction(reply.text, request, reply.finished, tastes) == 1
        turns[name] += [('assistant', reply.text), ('user', complaint(user, tastes, request, reply, number))]
    model = open_model(config.model.path).path.name
    for split in SPLITS:
        chosen = [(name, talk) for name, talk in talks.items() if talk[0]['split'] == split]
        write_records(folder / f'{split}.jsonl', (wildchat_record(u, turns[n], k, model) for n, (u, k, _) in chosen))
        counts[f'conversations_{split}'] = len(chosen)
    write_records(folder / 'users.jsonl', (user | dict(user_id=hashed(user['id'])) for user in users))
    prompts = [
        dict(
            id=f'{user["id"]}/{number}',
            split=user['split'],
            user_id=hashed(user['id']),
            persona=oracle_persona(user, tastes_at(user, number, s.conversations, request)),
            messages=[dict(role='user', content=request.text)],
        )
        for user in users
        for number, request in enumerate(asked(config, user))
        if number >= s.conversations
    ]
    counts['prompts'] = len(prompts)
    write_records(folder / 'prompts.jsonl', prompts)
    return task.write_manifest(counts)


STAGE = Stage('sources.simulated', 1, _work, 'data.raw', _identity)

if __name__ == '__main__':
    STAGE.main()
