"""Makes raw conversations in which simulated users make everyday requests and complain about a model's replies.

    python -m data_pipelines.sources.simulated --config=configs/NAME.py

The policy writes the replies, or the teacher (`config.simulated.replies`). If `config.simulated.contrary` is set, each
reply is written under an instruction that goes against one of the user's tastes. The instruction is not recorded. The
program writes these files to the folder `config.data.raw`:

    train.jsonl, validation.jsonl, test.jsonl   conversations in the WildChat-1M schema
    users.jsonl                                 the users and their tastes, for evaluation only
    prompts.jsonl                               more requests from every user, with personas that state tastes exactly

No topic, phrasing, persona wording, complaint wording or combination of tastes occurs in two splits. The tastes in
`config.simulated.held_out` occur only in the test split. Some users change a taste halfway through their history
(`flips`). Others have a taste for one kind of request only, and want the opposite for all other requests (`depends`).
"""

from data_pipelines.core.stage import Stage, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.record_files import write_records
from data_pipelines.core.records import SPLITS, PromptRecord, Record, SimulatedUser
from data_pipelines.core.turns import Turn, to_messages
from data_pipelines.simulator.files import PROMPTS, USERS
from data_pipelines.simulator.requests import Request
from data_pipelines.simulator.tastes import Tastes, satisfaction
from data_pipelines.simulator.users import (
    contrary_instruction,
    follow_up,
    hashed,
    oracle_persona,
    population,
    request_id,
    requests_of,
    tastes_at,
)
from data_pipelines.teacher.generation import generate, model_identity
from rlhi_jax.config import is_endpoint, require, settings_identity, teacher_path
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Prompt


class Asked(NamedTuple):
    """A simulated user's request, with its number among that user's requests."""

    user: SimulatedUser
    number: int
    request: Request

    @property
    def name(self) -> str:
        return request_id(self.user, self.number)

    @property
    def turn(self) -> Turn:
        return 'user', self.request.text

    def tastes(self, config: ConfigDict) -> Tastes:
        """The user's tastes at the time of the request."""
        return tastes_at(self.user, self.number, config.simulated.conversations, self.request)

    def prompt(self, config: ConfigDict) -> Prompt:
        """What the model that writes the reply sees."""
        if not config.simulated.contrary:
            return Prompt(self.name, (self.turn,))
        instruction = contrary_instruction(self.user, self.tastes(config), self.number)
        return Prompt(self.name, (('user', f'{self.request.text} {instruction}'),))


def wildchat_record(user: SimulatedUser, turns: Sequence[Turn], number: int, model: str) -> Record:
    """Return one conversation in the WildChat-1M schema. A user's conversations take place on consecutive days."""
    moment = (datetime(2026, 1, 1) + timedelta(days=number)).isoformat()
    user_id = hashed(user['id'])
    header = {'accept-language': 'en-GB', 'user-agent': 'simulated'}
    common = dict(country=None, state=None, hashed_ip=user_id, header=header, timestamp=moment)
    common |= dict(language='English', toxic=False, redacted=False)
    messages = [
        common | message | dict(turn_identifier=turn_index) for turn_index, message in enumerate(to_messages(turns))
    ]
    return common | dict(
        conversation_hash=digest('conversation', user['id'], number)[:32],
        model=model,
        conversation=messages,
        turn=sum(role == 'user' for role, _ in turns),
        openai_moderation=[],
        detoxify_moderation=[],
    )


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    return dict(
        population=population(config),
        simulated=config.simulated.to_dict(),
        sampler=settings_identity(config, 'sampler'),
        seed=config.seed,
        model=model_identity(config, _model_path(config)),
    )


def _model_path(config: ConfigDict) -> str:
    """The model that writes the replies."""
    return teacher_path(config) if config.simulated.replies == 'teacher' else config.model.path


def _work(task: Task) -> dict[str, int]:
    config, folder, users = task.config, task.folder, population(task.config)
    requests = [Asked(user, *numbered) for user in users for numbered in enumerate(requests_of(config, user))]
    openings = [asked for asked in requests if asked.number < config.simulated.conversations]
    further = [asked for asked in requests if asked.number >= config.simulated.conversations]
    counts: Counter = Counter(users=len(users), prompts=len(further))
    conversations = _converse(task, openings, counts)
    path = _model_path(config)
    model = config.teacher.model if is_endpoint(path) else open_model(path).path.name
    for split in SPLITS:
        of_split = [asked for asked in openings if asked.user['split'] == split]
        counts[f'conversations_{split}'] = len(of_split)
        records = (wildchat_record(asked.user, conversations[asked.name], asked.number, model) for asked in of_split)
        write_records(folder / f'{split}.jsonl', records)
    write_records(folder / USERS, (user | dict(user_id=hashed(user['id'])) for user in users))
    write_records(folder / PROMPTS, (_prompt(config, asked) for asked in further))
    return task.write_manifest(counts)


def _converse(task: Task, openings: Sequence[Asked], counts: Counter) -> dict[str, list[Turn]]:
    """Return the turns of each conversation (request, reply and follow-up), keyed by the request's id.

    Raises:
      UserError: a request is longer than the sampler allows.
    """
    config = task.config
    prompts = [asked.prompt(config) for asked in openings]
    replies = generate(task, _model_path(config), prompts) if prompts else {}
    conversations = {}
    for asked in openings:
        user, number, request = asked
        if not replies[asked.name]:
            raise UserError(
                f'config.sampler.prompt_tokens is {config.sampler.prompt_tokens}, but the request {request.text!r} has '
                'more tokens: raise config.sampler.prompt_tokens'
            )
        (reply,) = replies[asked.name]
        tastes = asked.tastes(config)
        counts['replies_cut_off'] += not reply.finished
        counts['replies_satisfying'] += satisfaction(reply.text, request, reply.finished, tastes) == 1
        answer = follow_up(user, tastes, request, reply, number)
        conversations[asked.name] = [asked.turn, ('assistant', reply.text), ('user', answer)]
    return conversations


def _prompt(config: ConfigDict, asked: Asked) -> PromptRecord:
    user = asked.user
    return PromptRecord(
        id=asked.name,
        split=user['split'],
        user_id=hashed(user['id']),
        persona=oracle_persona(user, asked.tastes(config)),
        messages=to_messages([asked.turn]),
    )


STAGE = Stage(name='sources.simulated', version=2, work=_work, output='data.raw', identity=_identity)

if __name__ == '__main__':
    STAGE.main()
