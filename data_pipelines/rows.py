"""Plan how to pack the interaction trees in `config.data.shards` into the fixed-size rows that training reads.

    python -m data_pipelines.rows --config=configs/NAME.py

`config.rows` sets the capacities of a row. Lengths are measured in tokens, with the tokenizer and chat template of
`config.model.path`. The plan can only be used with that tokenizer and template.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config import require
from rlhi_jax.data.plan import check_positions, load_plan, make_plan, plan_identity, save_plan
from rlhi_jax.data.rows import capacities
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.tokenizers.template import ChatTemplate


def _open(config: ConfigDict) -> tuple[Shards, ChatTemplate]:
    require(config, 'data.shards', 'model.path')
    template = ChatTemplate.load(open_model(config.model.path).tokenizer_path)
    return Shards(Path(config.data.shards)), template


def _identity(config: ConfigDict) -> dict[str, Any]:
    return plan_identity(*_open(config), capacities(config))


def _work(task: Task) -> dict[str, int]:
    shards, template = _open(task.config)
    with Progress('rows', len(shards), unit='trees') as progress:
        plan = make_plan(shards, template, capacities(task.config), progress.update)
    check_positions(plan, shards, template, most=open_model(task.config.model.path).spec.max_positions)
    save_plan(plan, task.folder, task.manifest(plan.counts))
    return plan.counts


def _counted(folder: Path) -> dict[str, int]:
    plan, _ = load_plan(folder)
    return {KEPT: len(plan.pair_names), 'rows': len(plan.rows)}


STAGE = Stage(
    name='rows',
    version=1,
    work=_work,
    output='data.rows',
    identity=_identity,
    contents=_counted,
    steps=(Step('pairs', ('pairs_read',)),),
    shown=('rows',),
    forgetting='removed',
)

if __name__ == '__main__':
    STAGE.main()
