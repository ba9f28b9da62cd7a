"""Reads the requests that a policy answers.

The requests are the prompts in `config.data.prompts` (JSON lines with id, user_id, persona, split and messages). If
`config.data.prompts` is empty, the requests are the user turns of a split's conversations, except turns that
`config.data.follow_ups` labels as positive feedback.

Personas come from the folder `config.data.personas`. A user turn gets the persona at that turn, and a prompt gets the
persona based on its user's whole history. If `config.data.personas` is empty, each prompt keeps the persona in its own
record.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.histories import side_by_side
from data_pipelines.core.inputs import input_digest, input_folder
from data_pipelines.core.passes import at_most
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import PromptRecord
from data_pipelines.core.turns import to_messages, turn_id, user_turn_indices
from data_pipelines.persona.store import user_personas, user_personas_digest
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest, file_digest
from rlhi_jax.sampling.generator import prompt_turns

_TEXT_FIELDS = ('id', 'user_id', 'persona', 'split')


def prompts_identity(config: ConfigDict) -> list[Any]:
    """Return the digests of everything that the prompts are read from."""
    if not config.data.prompts:
        return [input_digest(config, key) for key in ('conversations', 'follow_ups', 'personas')]
    personas = [user_personas_digest(config)] if config.data.personas else []
    return [file_digest(_prompts_file(config)), *personas]


def prompts_reader(config: ConfigDict) -> Callable[[Counter], Iterator[PromptRecord]]:
    """Return a function that reads the training prompts to sample candidate replies for (see `prompts_of`)."""
    return prompts_of(config, 'train', config.candidates.max_prompts)


def prompts_of(config: ConfigDict, split: str, most: int) -> Callable[[Counter], Iterator[PromptRecord]]:
    """Return a function that reads at most `most` prompts of a split; 0 stands for all.

    Prompts with a persona are chosen first, because prompts without one cannot show how a model uses personas. Within
    each group, prompts are chosen by a hash of their ids. The returned function takes a Counter, in which it counts the
    prompts that it leaves out.
    """

    def rank(prompt: PromptRecord) -> tuple[bool, str]:
        return not prompt['persona'], digest(prompt['id'])

    usable = functools.partial(_usable, config, split)
    return at_most(most, usable, rank, 'dropped_over_max_prompts')


def _usable(config: ConfigDict, split: str, counts: Counter) -> Iterator[PromptRecord]:
    for prompt, is_approval in (_of_file if config.data.prompts else _of_conversations)(config):
        counts['prompts_read'] += 1
        if prompt['split'] != split:
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
