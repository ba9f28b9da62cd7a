"""Find a stage by its name: the module `data_pipelines.NAME` defines the stage NAME.

The data card and `forget` handle folders of any stage. They ask each stage how to treat its folder, so neither of them
has to be edited when a stage is added.
"""

import importlib
import importlib.util

from data_pipelines.core.stage import Stage


def stage_named(name: str) -> Stage | None:
    """Return the stage that a manifest names, or None if the program that wrote the manifest is not a stage.

    >>> stage_named('pairs').output, stage_named('head_labels')
    ('data.pairs', None)
    """
    module = f'data_pipelines.{name}'
    try:
        known = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # not a valid module name
        known = False
    stage = getattr(importlib.import_module(module), 'STAGE', None) if known else None
    return stage if isinstance(stage, Stage) else None
