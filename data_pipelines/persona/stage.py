"""Defines the inputs and contents of the `personas` folder, for the two programs that write the folder.

The stage `data_pipelines.personas` builds the folder from the conversations. After a correction,
`data_pipelines.persona_store` rebuilds the folder from its stored claims. The stage considers the rebuilt folder up to
date.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_digest
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.stage import KEPT, Stage, Step, Task
from data_pipelines.persona.corrections import corrections_path
from data_pipelines.persona.store import CLAIMS, USERS, tokenizer_digest
from data_pipelines.reports.statistics import of_personas
from data_pipelines.teacher.generation import model_identity
from data_pipelines.teacher.prompts import prompt_digest
from data_pipelines.text.lexicons import lexicons_digest
from rlhi_jax.config import is_endpoint, settings_identity, teacher_path
from rlhi_jax.io.files import file_digest


def personas_stage(work: Callable[[Task], dict[str, int]]) -> Stage:
    """Return the stage `personas`, with `work` as the function that writes its folder."""
    return Stage(
        'personas',
        2,
        work,
        'data.personas',
        _identity,
        files={CLAIMS: KEPT, USERS: 'users', RECORDS: 'turns'},
        steps=(Step('remarks', ('remarks',), ('dropped_', 'deleted')),),
        shown=('users_with_persona',),
        summary=of_personas,
    )


def prompt_name(config: ConfigDict) -> str:
    """Return the name of the teacher's prompt.

    An endpoint might follow instructions in user text. The prompt for endpoints therefore marks where user text begins
    and ends.
    """
    return 'persona_by_endpoint' if is_endpoint(teacher_path(config)) else 'persona'


def _identity(config: ConfigDict) -> dict[str, Any]:
    corrections = corrections_path(config)
    return dict(
        inputs=[input_digest(config, key) for key in ('conversations', 'follow_ups')],
        teacher=model_identity(config, teacher_path(config)),
        tokenizer=tokenizer_digest(config),
        prompt=prompt_digest(prompt_name(config)),
        lexicons=lexicons_digest(),
        settings={key: value for key, value in config.personas.to_dict().items() if key != 'corrections'},
        corrections=file_digest(corrections) if corrections.exists() else '',
        sampler=settings_identity(config, 'sampler'),
        seed=config.seed,
    )
