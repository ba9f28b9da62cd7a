"""Measure how well a policy satisfies simulated users when it sees their own persona, another user's persona, or none.

    python -m data_pipelines.satisfaction --config=configs/NAME.py

The stage samples a reply from `config.satisfaction.model` to every prompt of the users in `config.satisfaction.split`,
in each condition of `config.satisfaction.conditions`. It checks each reply against the user's tastes.

In the condition 'other', the policy sees the persona of a user with exactly the opposite tastes. The gap G is the
satisfaction in the condition 'own' minus the satisfaction in the condition 'other'. It shows how much the policy uses
personas: a policy that ignores them has G = 0 on average. `data_pipelines/simulator/summary.py` uses the gap to compare
policies.
"""

from data_pipelines.core.stage import Stage, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.records import PromptRecord, SatisfactionRecord, SimulatedUser
from data_pipelines.core.turns import to_turns
from data_pipelines.persona.store import user_personas_digest
from data_pipelines.simulator.conditions import personas_by_condition
from data_pipelines.simulator.files import PROMPTS, USERS, load_prompts, load_users, request_of, tastes_of
from data_pipelines.simulator.tastes import satisfaction, valid
from data_pipelines.teacher.generation import generate, model_identity
from rlhi_jax.config import settings_identity
from rlhi_jax.io.errors import NothingToEvaluate
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.sampling.generator import Prompt, Reply
from rlhi_jax.tokenizers.template import Context

# The name of each condition in the sampler's seed. Changing these names would change the replies.
SAMPLED_AS = {'own': 'own', 'other': 'opposing', 'empty': 'empty'}


class Question(NamedTuple):
    """A user's prompt, with the persona that the policy sees in one condition."""

    prompt: PromptRecord
    condition: str  # own, other or empty
    persona: str

    @property
    def name(self) -> str:
        """The question's id, which determines the random seed of its reply."""
        return f'{self.prompt["id"]} {SAMPLED_AS[self.condition]}'


def _identity(config: ConfigDict) -> dict[str, Any]:
    settings, raw = config.satisfaction, Path(config.data.raw)
    return dict(
        model=model_identity(config, _model(config)),
        inputs=[file_digest(raw / name) for name in (USERS, PROMPTS) if (raw / name).exists()],
        personas=user_personas_digest(config) if config.data.personas else 'oracle',
        sampler=settings_identity(config, 'sampler'),
        conversations=config.simulated.conversations,
        settings=dict(
            split=settings.split,
            conditions=settings.conditions,
            seed=config.seed,
            max_prompts=settings.max_prompts,
        ),
    )


def _model(config: ConfigDict) -> str:
    return config.satisfaction.model or config.model.path


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter()
    users = load_users(task.config)
    questions = _questions(task.config, users, counts)
    prompts = [
        Prompt(question.name, to_turns(question.prompt['messages'][-1:]), Context('', question.persona))
        for question in questions
    ]
    replies = generate(task, _model(task.config), prompts)
    counts['replies'] = sum(len(replies[question.name]) for question in questions)
    counts['dropped_prompt_too_long'] = sum(not replies[question.name] for question in questions)
    records = (
        _record(task.config, users, question, reply) for question in questions for reply in replies[question.name]
    )
    return task.write(records, counts)


def _questions(config: ConfigDict, users: dict[str, SimulatedUser], counts: Counter) -> list[Question]:
    """Return the prompts to evaluate, each under every condition. Other prompts are skipped and counted by reason."""
    settings = config.satisfaction
    prompts = load_prompts(config, settings.split)
    counts['prompts_read'] = len(prompts)
    personas = personas_by_condition(config, users, prompts, counts)
    if not personas:
        remedy = 'add users to the split' if settings.split == 'test' else "set the key to 'test'"
        raise NothingToEvaluate(
            f'config.satisfaction.split: no prompt in {settings.split!r} can be evaluated (prompts by outcome: '
            f'{dict(counts)}): {remedy}'
        )
    prompts = [prompt for prompt in prompts if prompt['id'] in personas]
    if most := settings.max_prompts:
        counts['dropped_over_max_prompts'] = len(prompts[most:])
        prompts = sorted(prompts, key=lambda prompt: digest(prompt['id']))[:most]
    return [
        Question(prompt, condition, persona)
        for prompt in prompts
        for condition, persona in personas[prompt['id']].items()
        if condition in settings.conditions.split(',')
    ]


def _record(
    config: ConfigDict, users: dict[str, SimulatedUser], question: Question, reply: Reply
) -> SatisfactionRecord:
    """Return the record of a reply, including how well it satisfies the user's tastes."""
    prompt, request = question.prompt, request_of(question.prompt)
    tastes = tastes_of(config, users[prompt['user_id']], prompt)
    return SatisfactionRecord(
        id=prompt['id'],
        user_id=prompt['user_id'],
        condition=question.condition,
        persona=question.persona,
        request=request.text,
        text=reply.text,
        finished=reply.finished,
        valid=valid(reply.text, request, reply.finished),
        satisfaction=satisfaction(reply.text, request, reply.finished, tastes),
        met={taste: satisfaction(reply.text, request, reply.finished, {taste: side}) for taste, side in tastes.items()},
    )


STAGE = Stage(
    name='satisfaction',
    version=2,
    work=_work,
    output='data.satisfaction',
    identity=_identity,
    forgetting='removed',
)

if __name__ == '__main__':
    STAGE.main()
