"""Requests → N sampled replies each, scored by the persona-conditioned reward model (arXiv 2509.25137, section 3).

    python -m data_pipelines.candidates --config=configs/NAME.py

Prompts are `config.data.prompts` (JSON lines of id, user_id, persona, split, messages), or else every user turn of the
training conversations that asks for something: none that `config.data.follow_ups` labels positive feedback. Personas
are those of the folder `config.data.personas`: a turn's is of what its user had said before it, that of a prompt in the
file is of all that its user said; without the folder, the file's own. Replies come from `config.model.path`, scores
from `config.candidates.reward_model`, if there is one.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import personas
from data_pipelines.generation import generate, model_identity, scores
from data_pipelines.stage import Record, Stage, input_digest, load_records, read_records
from rlhi_jax.checkpoints import open_model
from rlhi_jax.config import capacities, require
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest
from rlhi_jax.generate import Prompt
from rlhi_jax.rewards import Candidates, CandidateScorer
from rlhi_jax.tokenizers.template import Context


def read_prompts(config: ConfigDict, counts: Counter) -> list[Record]:
    """The prompts to sample for; those of the training split only."""
    approvals: set[str] = set()
    if config.data.prompts:
        records = load_records(_prompts_file(config))
        if config.data.personas:
            found = personas.of_users(config)
            records = [record | dict(persona=found.get(record['user_id'], '')) for record in records]
    else:
        found = {record['id']: record['persona'] for record in read_records(config, 'personas')}
        approvals = {turn['id'] for turn in read_records(config, 'follow_ups') if turn['label'] == 'positive_feedback'}
        records = [
            dict(
                id=f'{talk["id"]}/{place}',
                split=talk['split'],
                user_id=talk['user_id'],
                persona=found[f'{talk["id"]}/{place}'],
                messages=talk['messages'][: place + 1],
            )
            for talk in read_records(config, 'conversations')
            for place, message in enumerate(talk['messages'])
            if message['role'] == 'user' and f'{talk["id"]}/{place}' in found
        ]
    counts['prompts_read'] = len(records)
    kept = []
    for record in records:
        if record['split'] != 'train':
            counts['dropped_other_split'] += 1
        elif record['id'] in approvals:
            counts['dropped_positive_feedback'] += 1
        else:
            kept.append(record)
    # Those with a persona first: they teach what the others cannot. Within each kind, an order that favours nobody.
    kept.sort(key=lambda record: (not record['persona'], digest(record['id'])))
    most = config.candidates.max_prompts or len(kept)
    counts['dropped_over_max_prompts'] = len(kept[most:])
    return kept[:most]


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
            inputs.append(personas.of_users_digest(config))
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


def _work(config: ConfigDict, folder: Path) -> dict[str, int]:
    counts: Counter = Counter()
    records = read_prompts(config, counts)
    prompts = [
        Prompt(
            record['id'],
            tuple((message['role'], message['content']) for message in record['messages']),
            Context(persona=record['persona'] if config.sampler_sees_persona else ''),
            config.candidates.samples,
        )
        for record in records
    ]
    replies = generate(config, folder, _identity(config), config.model.path, prompts)
    kept = []
    for record in records:
        said = [reply for reply in replies[record['id']] if reply.text]
        counts['replies'] += len(said)
        counts['dropped_empty_replies'] += len(replies[record['id']]) - len(said)
        if len({reply.text for reply in said}) < 2:
            counts['dropped_prompt_too_long' if not replies[record['id']] else 'dropped_fewer_than_two_replies'] += 1
            continue
        kept.append(record | {'replies': [dict(text=reply.text, finished=reply.finished) for reply in said]})
    if config.candidates.reward_model:
        asked = [
            Candidates(
                record['id'], record['messages'], record['persona'], [reply['text'] for reply in record['replies']]
            )
            for record in kept
        ]
        values = scores(folder, _identity(config), lambda: _reward_scorer(config), asked)
        for record in kept:
            record['scores'] = values[record['id']]
            counts['dropped_replies_longer_than_a_row'] += record['scores'].count(None)
    counts['prompts_kept'] = len(kept)
    return STAGE.write(config, folder, kept, counts)


def _reward_scorer(config: ConfigDict) -> CandidateScorer:
    path = config.candidates.reward_model
    if open_model(path).spec.head != 'reward':
        raise UserError(f'config.candidates.reward_model: {path} is no reward model: train one first')
    room = dataclasses.replace(capacities(config), pairs=config.candidates.samples)
    return CandidateScorer(config, path, room, sees_persona=config.rm_sees_persona)


STAGE = Stage('candidates', _work, 'data.candidates', _identity)

if __name__ == '__main__':
    STAGE.main()
