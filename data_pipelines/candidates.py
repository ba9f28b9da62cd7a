"""Sample N replies to each request and score how well each suits the user (arXiv 2509.25137, sec. 3).

    python -m data_pipelines.candidates --config=configs/NAME.py

The requests are the prompts in `config.data.prompts` (JSON lines with id, user_id, persona, split and messages). If
`config.data.prompts` is empty, the requests are the user turns of the training conversations, except turns that
`config.data.follow_ups` labels as positive feedback.

Personas come from the folder `config.data.personas`. A user turn gets the persona at that turn, and a prompt gets the
persona based on its user's whole history. If `config.data.personas` is empty, each prompt keeps the persona in its own
record.

The replies are sampled from `config.model.path`. `config.candidates.scorer` says what scores them: a reward model that
sees the persona (nothing, if `config.candidates.reward_model` is empty), or the policy itself
(`data_pipelines/preferences/persona_rise.py`).
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import side_by_side
from data_pipelines.core.inputs import input_digest, input_folder
from data_pipelines.core.passes import at_most, in_blocks, in_passes
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import Candidate, PromptRecord, SampledReply
from data_pipelines.core.turns import to_messages, to_turns, turn_id, user_turn_indices
from data_pipelines.persona.store import user_personas, user_personas_digest
from data_pipelines.preferences.persona_rise import Entry, persona_pool, strangers_personas
from data_pipelines.reports.statistics import of_candidates
from data_pipelines.teacher.generation import generate, model_identity, rise, scores
from rlhi_jax.config import require, settings_identity
from rlhi_jax.data.rows import Capacities, capacities
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.models.checkpoints import open_reward_model
from rlhi_jax.sampling.generator import Prompt, prompt_turns
from rlhi_jax.scoring.candidates import Candidates
from rlhi_jax.tokenizers.template import Context

BLOCK = 256  # prompts that a model processes together
_TEXT_FIELDS = ('id', 'user_id', 'persona', 'split')


def prompts_reader(config: ConfigDict) -> Callable[[Counter], Iterator[PromptRecord]]:
    """Return a function that reads at most `config.candidates.max_prompts` training prompts to sample replies for.

    Prompts with a persona are chosen first, because prompts without one cannot teach a model to use personas. Within
    each group, prompts are chosen by a hash of their ids. The returned function takes a Counter, in which it counts the
    prompts that it leaves out.
    """

    def rank(prompt: PromptRecord) -> tuple[bool, str]:
        return not prompt['persona'], digest(prompt['id'])

    usable = functools.partial(_usable, config)
    return at_most(config.candidates.max_prompts, usable, rank, 'dropped_over_max_prompts')


def _usable(config: ConfigDict, counts: Counter) -> Iterator[PromptRecord]:
    for prompt, is_approval in (_of_file if config.data.prompts else _of_conversations)(config):
        counts['prompts_read'] += 1
        if prompt['split'] != 'train':
            counts['dropped_other_split'] += 1
        elif is_approval:
            counts['dropped_positive_feedback'] += 1
        else:
            yield prompt


def _of_file(config: ConfigDict) -> Iterator[tuple[PromptRecord, bool]]:
    """Yield each prompt in `config.data.prompts` with the flag False, as these prompts are not positive feedback."""
    path, seen = _prompts_file(config), set()
    personas = user_personas(config) if config.data.personas else None
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                turns = prompt_turns(record, _TEXT_FIELDS)
                if record['id'] in seen:
                    raise ValueError('an earlier prompt has the same id')
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f'config.data.prompts: {path}, line {number} is not a prompt ({one_line(error)}): correct the line'
                ) from None
            seen.add(record['id'])
            prompt = PromptRecord(**{name: record[name] for name in _TEXT_FIELDS}, messages=to_messages(turns))
            if personas is not None:
                prompt['persona'] = personas.get(prompt['user_id'], '')
            yield prompt, False


def _of_conversations(config: ConfigDict) -> Iterator[tuple[PromptRecord, bool]]:
    """Yield (prompt, is_positive_feedback) for each user turn that has a persona record."""
    folders = [input_folder(config, key) / RECORDS for key in ('personas', 'follow_ups')]
    for conversation, (turn_personas, follow_ups) in side_by_side(config, *folders):
        approvals = {follow_up['id'] for follow_up in follow_ups if follow_up['label'] == 'positive_feedback'}
        personas = {turn['id']: turn['persona'] for turn in turn_personas}
        messages = conversation['messages']
        for turn_index in user_turn_indices(messages):
            name = turn_id(conversation['id'], turn_index)
            if name in personas:
                prompt = PromptRecord(
                    id=name,
                    split=conversation['split'],
                    user_id=conversation['user_id'],
                    persona=personas[name],
                    messages=messages[: turn_index + 1],
                )
                yield prompt, name in approvals


def _prompts_file(config: ConfigDict) -> Path:
    path = Path(config.data.prompts)
    if not path.is_file():
        raise UserError(f'config.data.prompts: {path} does not exist: set the key to a file of prompts')
    return path


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    settings = config.candidates
    if config.data.prompts:
        inputs = [file_digest(_prompts_file(config))]
        if config.data.personas:
            inputs.append(user_personas_digest(config))
    else:
        inputs = [input_digest(config, key) for key in ('conversations', 'follow_ups', 'personas')]
    return dict(
        prompts=inputs,
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
        steps = [functools.partial(_met, pool), *steps, functools.partial(_scored_by_policy, task, pool)]
    elif config.candidates.reward_model:
        steps.append(functools.partial(_scored, task))
    candidates = in_passes(read, steps, counts)
    return task.write(_counted(candidates, counts), counts)


def _counted(candidates: Iterable[Candidate], counts: Counter) -> Iterator[Candidate]:
    for candidate in candidates:
        counts['prompts_kept'] += 1
        yield candidate


def _met(pool: Sequence[Entry], prompts: Iterable[PromptRecord], counts: Counter) -> Iterator[PromptRecord]:
    """Yield each prompt that has a persona and for which the pool has strangers."""
    for prompt in prompts:
        if not prompt['persona']:
            counts['dropped_no_persona'] += 1
        elif not strangers_personas(prompt, pool, 1):
            counts['dropped_no_stranger'] += 1
        else:
            yield prompt


def _replied(task: Task, prompts: Iterable[PromptRecord], counts: Counter) -> Iterator[Candidate]:
    """Yield each prompt that has at least two different replies, together with its non-empty replies."""
    config = task.config
    for block in in_blocks(prompts, BLOCK):
        asked = [
            Prompt(
                prompt['id'],
                to_turns(prompt['messages']),
                Context(persona=prompt['persona'] if config.sampler_sees_persona else ''),
                config.candidates.samples,
            )
            for prompt in block
        ]
        drawn_by_id = generate(task, config.model.path, asked)
        for prompt in block:
            drawn = drawn_by_id[prompt['id']]
            replies = [SampledReply(text=reply.text, finished=reply.finished) for reply in drawn if reply.text]
            counts['replies'] += len(replies)
            counts['dropped_empty_replies'] += len(drawn) - len(replies)
            if len({reply['text'] for reply in replies}) < 2:
                counts['dropped_fewer_than_two_replies' if drawn else 'dropped_prompt_too_long'] += 1
            else:
                yield Candidate(**prompt, replies=replies)


def _scored(task: Task, candidates: Iterable[Candidate], counts: Counter) -> Iterator[Candidate]:
    """Yield the candidates with the rewards of their replies."""
    config, path = task.config, task.config.candidates.reward_model
    open_reward_model(path, 'config.candidates.reward_model')
    for block in in_blocks(candidates, BLOCK):
        items = [_asked(candidate, candidate['id'], candidate['persona']) for candidate in block]
        scores_by_id = scores(task, path, items, capacities=_one_tree(config), sees_persona=config.rm_sees_persona)
        for candidate in block:
            yield _with_scores(candidate, scores_by_id[candidate['id']], counts)


def _scored_by_policy(
    task: Task, pool: Sequence[Entry], candidates: Iterable[Candidate], counts: Counter
) -> Iterator[Candidate]:
    """Yield the candidates with how much likelier the user's persona makes their replies than strangers' do."""
    config = task.config
    for block in in_blocks(candidates, BLOCK):
        items = {}
        for candidate in block:
            personas = candidate['persona'], *strangers_personas(candidate, pool, config.candidates.strangers)
            items[candidate['id']] = [
                _asked(candidate, f'persona {number} {candidate["id"]}', persona)
                for number, persona in enumerate(personas)
            ]
        all_items = list(itertools.chain.from_iterable(items.values()))
        log_probs = scores(task, config.model.path, all_items, capacities=_one_tree(config), sees_persona=True)
        for candidate in block:
            by_persona = [log_probs[item.id] for item in items[candidate['id']]]  # the user's own persona comes first
            yield _with_scores(candidate, [rise(*reply) for reply in zip(*by_persona, strict=True)], counts)


def _asked(candidate: Candidate, name: str, persona: str) -> Candidates:
    """The candidate's replies, to be scored under a persona."""
    return Candidates(name, candidate['messages'], persona, [reply['text'] for reply in candidate['replies']])


def _one_tree(config: ConfigDict) -> Capacities:
    return dataclasses.replace(capacities(config), pairs=config.candidates.samples)


def _with_scores(candidate: Candidate, its_scores: list[float | None], counts: Counter) -> Candidate:
    counts['dropped_replies_longer_than_a_row'] += its_scores.count(None)
    return candidate | dict(scores=its_scores)


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
