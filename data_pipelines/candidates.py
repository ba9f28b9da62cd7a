"""Requests → N sampled replies each, scored by the persona-conditioned reward model (arXiv 2509.25137, section 3).

    python -m data_pipelines.candidates --config=configs/NAME.py

Prompts are `config.data.prompts` (JSON lines of id, user_id, persona, split, messages), or else every user turn of the
training conversations that asks for something: none that `config.data.follow_ups` labels positive feedback. Personas
are those of the folder `config.data.personas`: a turn's is of what its user had said before it, that of a prompt in the
file is of all that its user said; without the folder, the file's own. Replies come from `config.model.path`, scores
from `config.candidates.reward_model`, if there is one.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import side_by_side
from data_pipelines.core.stage import (
    RECORDS,
    Record,
    Stage,
    Task,
    at_most,
    in_blocks,
    in_passes,
    input_digest,
    input_folder,
)
from data_pipelines.persona.store import of_users, of_users_digest
from data_pipelines.teacher.generation import generate, model_identity, scores
from rlhi_jax.config import require
from rlhi_jax.data.rows import capacities
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Prompt, prompt_turns
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.tokenizers.template import Context

BLOCK = 256  # prompts that a model is asked about together


def _of_file(config: ConfigDict) -> Iterator[Record]:
    """The prompts of `config.data.prompts`."""
    path, seen = _prompts_file(config), set()
    found = of_users(config) if config.data.personas else None
    with open(path, 'rb') as file:
        for number, text in enumerate(file, start=1):
            try:
                record = json.loads(text)
                turns = prompt_turns(record, ('id', 'user_id', 'persona', 'split'))
                if record['id'] in seen:
                    raise ValueError('its id is that of another')
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f'config.data.prompts: {path}, line {number} is no prompt ({one_line(error)}): give it id (of no '
                    'other line), user_id, persona, split and messages of role and content that end in a user turn'
                ) from None
            seen.add(record['id'])
            record = {name: record[name] for name in ('id', 'user_id', 'persona', 'split')}
            record['messages'] = [dict(role=role, content=content) for role, content in turns]
            yield record if found is None else record | dict(persona=found.get(record['user_id'], ''))


def _of_conversations(config: ConfigDict) -> Iterator[Record]:
    """The user turns that have a persona, if only an empty one; `approves` says which are positive feedback."""
    folders = [input_folder(config, key) / RECORDS for key in ('personas', 'follow_ups')]
    for talk, (known, turns) in side_by_side(config, *folders):
        approvals = {turn['id'] for turn in turns if turn['label'] == 'positive_feedback'}
        found = {record['id']: record['persona'] for record in known}
        for place in range(0, len(talk['messages']), 2):
            if (name := f'{talk["id"]}/{place}') in found:
                yield dict(
                    id=name,
                    split=talk['split'],
                    user_id=talk['user_id'],
                    persona=found[name],
                    messages=talk['messages'][: place + 1],
                    approves=name in approvals,
                )


def _usable(config: ConfigDict, counts: Counter) -> Iterator[Record]:
    for record in (_of_file if config.data.prompts else _of_conversations)(config):
        counts['prompts_read'] += 1
        approves = record.pop('approves', False)
        if record['split'] != 'train':
            counts['dropped_other_split'] += 1
        elif approves:
            counts['dropped_positive_feedback'] += 1
        else:
            yield record


def prompts_reader(config: ConfigDict) -> Callable[[Counter], Iterator[Record]]:
    """What reads the prompts to sample for, those of the training split, at most `config.candidates.max_prompts`.

    Those with a persona come first: they teach what the others cannot. Within each kind a hash favours nobody.
    """

    def rank(record: Record) -> tuple[bool, str]:
        return not record['persona'], digest(record['id'])

    usable = functools.partial(_usable, config)
    return at_most(config.candidates.max_prompts, usable, rank, 'dropped_over_max_prompts')


def _prompts_file(config: ConfigDict) -> Path:
    path = Path(config.data.prompts)
    if not path.is_file():
        raise UserError(f'config.data.prompts: {path} does not exist')
    return path


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    c = config.candidates
    if config.data.prompts:
        inputs = [file_digest(_prompts_file(config))]
        if config.data.personas:
            inputs.append(of_users_digest(config))
    else:
        inputs = [input_digest(config, key) for key in ('conversations', 'follow_ups', 'personas')]
    return dict(
        prompts=inputs,
        model=model_identity(config, config.model.path),
        reward_model=model_identity(config, c.reward_model) if c.reward_model else '',
        rows=config.rows.to_dict() if c.reward_model else '',
        sampler=config.sampler.to_dict(),
        settings=dict(samples=c.samples, max_prompts=c.max_prompts, seed=config.seed),
        sees_persona=dict(sampler=config.sampler_sees_persona, reward_model=config.rm_sees_persona),
    )


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter(dict.fromkeys(('prompts_read', 'prompts_kept', 'replies'), 0))
    steps = [_replied, *([_scored] if task.config.candidates.reward_model else [])]
    found = in_passes(prompts_reader(task.config), [functools.partial(step, task) for step in steps], counts)
    return task.write(_counted(found, counts), counts)


def _counted(records: Iterable[Record], counts: Counter) -> Iterator[Record]:
    for record in records:
        counts['prompts_kept'] += 1
        yield record


def _replied(task: Task, records: Iterable[Record], counts: Counter) -> Iterator[Record]:
    """With their replies, at least two different ones."""
    config = task.config
    for block in in_blocks(records, BLOCK):
        prompts = [
            Prompt(
                record['id'],
                tuple((message['role'], message['content']) for message in record['messages']),
                Context(persona=record['persona'] if config.sampler_sees_persona else ''),
                config.candidates.samples,
            )
            for record in block
        ]
        replies = generate(task, config.model.path, prompts)
        for record in block:
            drawn = replies[record['id']]
            said = [reply for reply in drawn if reply.text]
            counts['replies'] += len(said)
            counts['dropped_empty_replies'] += len(drawn) - len(said)
            if len({reply.text for reply in said}) < 2:
                counts['dropped_prompt_too_long' if not drawn else 'dropped_fewer_than_two_replies'] += 1
            else:
                yield record | dict(replies=[dict(text=reply.text, finished=reply.finished) for reply in said])


def _scored(task: Task, records: Iterable[Record], counts: Counter) -> Iterator[Record]:
    """With their replies' scores."""
    path = task.config.candidates.reward_model
    for block in in_blocks(records, BLOCK):
        asked = [
            Candidates(
                record['id'],
                record['messages'],
                record['persona'],
                [reply['text'] for reply in record['replies']],
            )
            for record in block
        ]
        values = scores(task, path, lambda: _reward_scorer(task.config), asked)
        for record in block:
            own = values[record['id']]
            counts['dropped_replies_longer_than_a_row'] += own.count(None)
            yield record | dict(scores=own)


def _reward_scorer(config: ConfigDict) -> CandidateScorer:
    path = config.candidates.reward_model
    if open_model(path).spec.head != 'reward':
        raise UserError(f'config.candidates.reward_model: {path} is no reward model: train one first')
    room = dataclasses.replace(capacities(config), pairs=config.candidates.samples)
    return CandidateScorer(config, path, room, sees_persona=config.rm_sees_persona)


STAGE = Stage('candidates', 1, _work, 'data.candidates', _identity)

if __name__ == '__main__':
    STAGE.main()
