"""Sample N replies to each request and score how well each suits the user (arXiv 2509.25137, sec. 3).

    python -m data_pipelines.candidates --config=configs/NAME.py

`data_pipelines/preferences/prompts.py` says which requests these are, and where their personas come from.

The replies are sampled from `config.model.path`. `config.candidates.scorer` says what scores them: a reward model that
sees the persona (nothing, if `config.candidates.reward_model` is empty), or the policy itself
(`data_pipelines/preferences/persona_rise.py`).
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.passes import in_blocks, in_passes
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import Candidate, PromptRecord
from data_pipelines.preferences.candidates import asked, by_policy, by_reward_model, candidate_of, judgeable, one_tree
from data_pipelines.preferences.persona_rise import Entry, persona_pool
from data_pipelines.preferences.prompts import prompts_identity, prompts_reader
from data_pipelines.reports.statistics import of_candidates
from data_pipelines.teacher.generation import generate, model_identity, scores
from rlhi_jax.config import require, settings_identity
from rlhi_jax.models.checkpoints import open_reward_model

BLOCK = 256  # prompts that a model processes together


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    settings = config.candidates
    return dict(
        prompts=prompts_identity(config),
        model=model_identity(config, config.model.path),
        reward_model=model_identity(config, settings.reward_model) if settings.reward_model else '',
        rows=config.rows.to_dict() if _is_scored(config) else '',
        sampler=settings_identity(config, 'sampler'),
        settings=dict(samples=settings.samples, max_prompts=settings.max_prompts, seed=config.seed),
        sees_persona=dict(sampler=config.sampler_sees_persona, reward_model=config.rm_sees_persona),
    ) | (dict(strangers=settings.strangers) if settings.scorer == 'policy' else {})


def _is_scored(config: ConfigDict) -> bool:
    return config.candidates.scorer == 'policy' or bool(config.candidates.reward_model)


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter(prompts_read=0, prompts_kept=0, replies=0)
    config, read = task.config, prompts_reader(task.config)
    steps = [functools.partial(_replied, task)]
    if config.candidates.scorer == 'policy':
        pool = persona_pool(read(Counter()))
        steps = [functools.partial(judgeable, pool), *steps, functools.partial(_scored, task, pool)]
    elif config.candidates.reward_model:
        open_reward_model(config.candidates.reward_model, 'config.candidates.reward_model')
        steps.append(functools.partial(_scored, task, None))
    candidates = in_passes(read, steps, counts)
    return task.write(_counted(candidates, counts), counts)


def _counted(candidates: Iterable[Candidate], counts: Counter) -> Iterator[Candidate]:
    for candidate in candidates:
        counts['prompts_kept'] += 1
        yield candidate


def _replied(task: Task, prompts: Iterable[PromptRecord], counts: Counter) -> Iterator[Candidate]:
    """Yield each prompt that has at least two different replies, together with its non-empty replies."""
    for block in in_blocks(prompts, BLOCK):
        drawn = generate(task, task.config.model.path, [asked(prompt, task.config) for prompt in block])
        for prompt in block:
            if candidate := candidate_of(prompt, drawn[prompt['id']], counts):
                yield candidate


def _scored(
    task: Task, pool: Sequence[Entry] | None, candidates: Iterable[Candidate], counts: Counter
) -> Iterator[Candidate]:
    """Yield the candidates with the scores of their replies: rewards or, with a pool, the policy's own judgements."""
    config = task.config
    path = config.candidates.reward_model if pool is None else config.model.path
    sees_persona = config.rm_sees_persona if pool is None else True
    score = functools.partial(scores, task, path, capacities=one_tree(config), sees_persona=sees_persona)
    for block in in_blocks(candidates, BLOCK):
        if pool is None:
            all_scores = by_reward_model(score, block)
        else:
            all_scores = by_policy(score, block, pool, config.candidates.strangers)
        for candidate, its_scores in zip(block, all_scores, strict=True):
            counts['dropped_replies_longer_than_a_row'] += its_scores.count(None)
            yield candidate | dict(scores=its_scores)


STAGE = Stage(
    name='candidates',
    version=1,
    work=_work,
    output='data.candidates',
    identity=_identity,
    files={RECORDS: KEPT},
    steps=(
        Step('prompts', read=('prompts_read',)),
        Step('replies', dropped=('dropped_replies_', 'dropped_empty_replies')),
    ),
    shown=('replies',),
    summary=of_candidates,
)

if __name__ == '__main__':
    STAGE.main()
