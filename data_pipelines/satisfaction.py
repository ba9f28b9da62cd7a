"""Evaluate a policy on simulated users: how far its replies satisfy them under their own persona, another's, and none.

    python -m data_pipelines.satisfaction --config=configs/NAME.py

Samples a reply of `config.satisfaction.model` to every held-out prompt in each condition and checks it against the
user's tastes. What a policy learned about personas is the gap G = own − opposing, where the opposing user likes the
opposite in everything: a model that ignores the persona has G = 0, whatever else it learned. In the stage
`oracle_scores` the same checks score the candidates of training users, for runs that leave the reward model out; a
prompt whose replies satisfy no taste has no best one, and no scores.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import personas
from data_pipelines.generation import generate, model_identity
from data_pipelines.sources import simulated
from data_pipelines.sources.requests import Request, requests
from data_pipelines.sources.tastes import opposite, satisfaction, share_met
from data_pipelines.stage import RECORDS, Record, Stage, Task, input_digest, load_records, read_records
from rlhi_jax.config import require
from rlhi_jax.errors import NothingToEvaluate, UserError
from rlhi_jax.evaluate import interval
from rlhi_jax.files import digest, file_digest
from rlhi_jax.generate import Prompt
from rlhi_jax.tokenizers.template import Context

Tables = dict[str, dict[str, dict[str, Record]]]  # model → condition → prompt id


def _raw(config: ConfigDict, name: str) -> list[Record]:
    require(config, 'data.raw')
    path = Path(config.data.raw) / name
    if not path.exists():
        raise UserError(f'{path} does not exist: config.data.raw must be a folder of data_pipelines.sources.simulated')
    return load_records(path)


def _users(config: ConfigDict) -> dict[str, Record]:
    """Simulated users by the id that stands for them in conversations and prompts."""
    return {simulated.hashed(user['id']): user for user in _raw(config, 'users.jsonl')}


def _tastes(config: ConfigDict, user: Record, number: int, text: str) -> dict[str, str]:
    """What a user likes in a reply to their request of this number and text."""
    return simulated.tastes_at(user, number, config.simulated.conversations, REQUESTS[text])


def _number(prompt_id: str) -> int:
    return int(prompt_id.rsplit('/', 1)[1])


REQUESTS = {request.text: request for split in simulated.SPLITS for request in requests(split)}


def _mirrored(tastes: dict[str, str]) -> dict[str, str]:
    return {pair: opposite(pair, side) for pair, side in tastes.items()}


def conditions(
    config: ConfigDict, users: dict[str, Record], prompts: list[Record], counts: Counter
) -> dict[str, dict[str, str]]:
    """Each prompt's persona in each condition: the user's own, one of opposite tastes, and none.

    With `config.data.personas`, personas are those that the teacher found in the users' earlier conversations, and the
    opposing persona is that of a user of the same split who likes the opposite, always; prompts for which either is
    missing are left out and counted. Else both are the oracle's.
    """
    inferred = personas.of_users(config) if config.data.personas else None
    steady = {
        (user['split'], json.dumps(user['tastes'], sort_keys=True)): name
        for name, user in users.items()
        if not user['flips'] and not user['depends']
    }
    result = {}
    for prompt in prompts:
        user = users[prompt['user_id']]
        now = _tastes(config, user, _number(prompt['id']), prompt['messages'][-1]['content'])
        opposing_tastes = _mirrored(now)
        if inferred is None:
            own, opposing = prompt['persona'], simulated.oracle_persona(user, opposing_tastes)
        else:
            other = steady.get((user['split'], json.dumps(opposing_tastes, sort_keys=True)))
            if other is None:
                counts['dropped_no_opposing_user'] += 1
                continue
            own, opposing = inferred.get(prompt['user_id'], ''), inferred.get(other, '')
            if not own or not opposing:
                counts['dropped_no_persona'] += 1
                continue
        result[prompt['id']] = dict(own=own, opposing=opposing, empty='')
    return result


def _identity(config: ConfigDict) -> dict[str, Any]:
    s = config.satisfaction
    raw = Path(config.data.raw)
    return dict(
        model=model_identity(config, s.model or config.model.path),
        inputs=[file_digest(raw / name) for name in ('users.jsonl', 'prompts.jsonl') if (raw / name).exists()],
        personas=personas.of_users_digest(config) if config.data.personas else 'oracle',
        sampler=config.sampler.to_dict(),
        conversations=config.simulated.conversations,
        settings=dict(split=s.split, conditions=s.conditions, seed=config.seed, max_prompts=s.max_prompts),
    )


def _work(task: Task) -> dict[str, int]:
    config = task.config
    users = _users(config)
    records = [prompt for prompt in _raw(config, 'prompts.jsonl') if prompt['split'] == config.satisfaction.split]
    counts: Counter = Counter(prompts_read=len(records))
    said = conditions(config, users, records, counts)
    if not said:
        raise NothingToEvaluate(
            f'config.satisfaction.split: no prompt of {config.satisfaction.split!r} can be evaluated (counts: '
            f'{dict(counts)}): give it users; with inferred personas they need users of opposite tastes, as test has'
        )
    records = [record for record in records if record['id'] in said]
    if most := config.satisfaction.max_prompts:
        counts['dropped_over_max_prompts'] = len(records[most:])
        records = sorted(records, key=lambda record: digest(record['id']))[:most]
    prompts = [
        Prompt(f'{record["id"]} {condition}', (('user', record['messages'][-1]['content']),), Context('', persona))
        for record in records
        for condition, persona in said[record['id']].items()
        if condition in config.satisfaction.conditions.split(',')
    ]
    model = config.satisfaction.model or config.model.path
    replies = generate(task, model, prompts)
    by_id = {record['id']: record for record in records}
    results = []
    for prompt in prompts:
        name, condition = prompt.id.rsplit(' ', 1)
        record = by_id[name]
        user, request = users[record['user_id']], REQUESTS[record['messages'][-1]['content']]
        for reply in replies[prompt.id]:
            tastes = _tastes(config, user, _number(name), request.text)
            results.append(
                dict(
                    id=name,
                    user_id=record['user_id'],
                    condition=condition,
                    persona=prompt.context.persona,
                    request=request.text,
                    text=reply.text,
                    finished=reply.finished,
                    valid=simulated.valid(reply.text, request, reply.finished),
                    satisfaction=satisfaction(reply.text, request, reply.finished, tastes),
                    met={
                        pair: satisfaction(reply.text, request, reply.finished, {pair: side})
                        for pair, side in tastes.items()
                    },
                )
            )
    counts['replies'] = len(results)
    counts['dropped_prompt_too_long'] = sum(not replies[prompt.id] for prompt in prompts)
    return task.write(results, counts)


def summarise(by_model: dict[str, Path], held_out: Sequence[str] = ()) -> dict[str, Any]:
    """Satisfaction by model and condition, the gap, and its change from the first model to the last; 95 % intervals.

    All of it is over the prompts that every model answered in every condition; intervals resample users. Users with a
    taste that is `held_out` count only in `by_pair`, where a reply's value is whether it meets the pair's taste.
    """
    tables: Tables = {}
    for model, folder in by_model.items():
        for record in load_records(folder / RECORDS):
            tables.setdefault(model, {}).setdefault(record['condition'], {})[record['id']] = record
    for model, folder in by_model.items():
        if not {'own', 'opposing'} <= tables.get(model, {}).keys():
            raise NothingToEvaluate(
                f'{folder} has no reply under a persona of the user and one under an opposing: raise '
                'config.sampler.prompt_tokens, or see config.satisfaction.conditions'
            )
    shared = sorted(set.intersection(*(set(t) for conditions in tables.values() for t in conditions.values())))
    met = {name: next(iter(next(iter(tables.values())).values()))[name]['met'] for name in shared}
    known = [name for name in shared if not set(met[name]) & set(held_out)]
    if not known:
        raise NothingToEvaluate('no prompt of users without held-out tastes was answered in every condition')
    result = _summary(tables, known, lambda record: record['satisfaction'])
    for model, conditions in tables.items():
        valid = {name: float(conditions['own'][name]['valid']) for name in known}
        result['models'][model]['valid'] = interval(valid, {name: conditions['own'][name]['user_id'] for name in known})
    result['by_pair'] = {
        pair: _summary(
            tables, [name for name in shared if pair in met[name]], lambda record, pair=pair: record['met'][pair]
        )
        | dict(held_out=pair in held_out)
        for pair in sorted({pair for pairs in met.values() for pair in pairs})
    }
    return result


def _summary(tables: Tables, names: Sequence[str], value: Callable[[Record], float]) -> dict[str, Any]:
    """Mean of `value` by model and condition, the gap between own and opposing, and its change."""
    first, last = next(iter(tables)), next(reversed(tables))
    users = {name: tables[first]['own'][name]['user_id'] for name in names}

    def values(model: str, condition: str) -> np.ndarray:
        return np.array([value(tables[model][condition][name]) for name in names], float)

    def mean(found: np.ndarray) -> dict[str, float]:
        return interval(dict(zip(names, found.tolist(), strict=True)), users)

    models = {model: {c: mean(values(model, c)) for c in conditions} for model, conditions in tables.items()}
    gaps = {model: values(model, 'own') - values(model, 'opposing') for model in tables}
    for model, gap in gaps.items():
        models[model]['gap'] = mean(gap)
    change = mean(gaps[last] - gaps[first])
    return dict(prompts=len(names), users=len(set(users.values())), models=models, gap_change=change)


def oracle_score(reply: str, request: Request, finished: bool, tastes: dict[str, str]) -> float:
    """A valid reply's share of tastes met; of any other a tenth and less, so that what it misses still ranks it.

    Every invalid reply is below all valid ones that meet a taste, but one that meets all is above a valid one that
    meets none: the worst of N is to differ from the best in tastes, not in validity alone.
    """
    met = share_met(reply, tastes)
    return met if simulated.valid(reply, request, finished) else 0.2 * met - 0.1


def _score_identity(config: ConfigDict) -> dict[str, Any]:
    return dict(
        candidates=input_digest(config, 'candidates'),
        users=file_digest(Path(config.data.raw) / 'users.jsonl'),
        conversations=config.simulated.conversations,
    )


def _score(task: Task) -> dict[str, int]:
    config = task.config
    users, scores = _users(config), []
    for record in read_records(config, 'candidates'):
        request = REQUESTS[record['messages'][-1]['content']]
        tastes = _tastes(config, users[record['user_id']], _number(record['id']), request.text)
        said = [(reply['text'], request, reply['finished'], tastes) for reply in record['replies']]
        some_satisfy = any(satisfaction(*one) > 0 for one in said)
        values = [oracle_score(*one) if some_satisfy else None for one in said]
        scores.append(dict(id=record['id'], scores=values))
    return task.write(scores, Counter(prompts=len(scores)))


STAGE = Stage('satisfaction', 1, _work, 'data.satisfaction', _identity)
ORACLE = Stage('oracle_scores', 1, _score, 'data.scores', _score_identity)

if __name__ == '__main__':
    STAGE.main()
