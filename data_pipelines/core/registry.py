"""Stages by name, without a list of them: the module `data_pipelines.NAME` defines the stage NAME.

The data card and `forget` meet folders of any stage. They ask the stage itself how to treat its folder, so a new stage
edits neither of them.
"""

import importlib
import importlib.util

from data_pipelines.core.stage import Stage


def stage_named(name: str) -> Stage | None:
    """The stage that a manifest names; None if another program wrote the manifest.

    >>> stage_named('pairs').output, stage_named('head_labels')
    ('data.pairs', None)
    """
    module = f'data_pipelines.{name}'
    try:
        known = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a name that is not a module's
        known = False
    stage = getattr(importlib.import_module(module), 'STAGE', None) if known else None
    return stage if isinstance(stage, Stage) else None
