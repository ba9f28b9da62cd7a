"""Evaluate a policy on simulated users: how far its replies satisfy them under their own persona, another's, and none.

    python -m data_pipelines.satisfaction --config=configs/NAME.py

Samples a reply of `config.satisfaction.model` to every held-out prompt in each condition and checks it against the
user's tastes. What a policy learned about personas is the gap G = own − opposing, where the opposing user likes the
opposite in everything: a model that ignores the persona has G = 0, whatever else it learned. In the stage
`oracle_scores` the same checks score the candidates of training users, for runs that leave the reward model out; a
prompt whose replies satisfy no taste has no best one, and no scores.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.stage import Stage, Task
from data_pipelines.persona.store import of_users_digest
from data_pipelines.simulator.conditions import conditions
from data_pipelines.simulator.data import REQUESTS, raw, request_number, tastes_of, users_by_hash
from data_pipelines.simulator.tastes import satisfaction, valid
from data_pipelines.teacher.generation import generate, model_identity
from rlhi_jax.io.errors import NothingToEvaluate
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.sampling.generator import Prompt
from rlhi_jax.tokenizers.template import Context


def _identity(config: ConfigDict) -> dict[str, Any]:
    s = config.satisfaction
    raw = Path(config.data.raw)
    return dict(
        model=model_identity(config, s.model or config.model.path),
        inputs=[file_digest(raw / name) for name in ('users.jsonl', 'prompts.jsonl') if (raw / name).exists()],
        personas=of_users_digest(config) if config.data.personas else 'oracle',
        sampler=config.sampler.to_dict(),
        conversations=config.simulated.conversations,
        settings=dict(split=s.split, conditions=s.conditions, seed=config.seed, max_prompts=s.max_prompts),
    )


def _work(task: Task) -> dict[str, int]:
    config = task.config
    users = users_by_hash(config)
    records = [prompt for prompt in raw(config, 'prompts.jsonl') if prompt['split'] == config.satisfaction.split]
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
            tastes = tastes_of(config, user, request_number(name), request.text)
            results.append(
                dict(
                    id=name,
                    user_id=record['user_id'],
                    condition=condition,
                    persona=prompt.context.persona,
                    request=request.text,
                    text=reply.text,
                    finished=reply.finished,
                    valid=valid(reply.text, request, reply.finished),
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


STAGE = Stage('satisfaction', 1, _work, 'data.satisfaction', _identity)

if __name__ == '__main__':
    STAGE.main()
