"""Ensures that a workdir contains only one run, and that the run resumes only with the same settings."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, read_json, write_json
from rlhi_jax.models.checkpoints import ModelFolder, describe_model
from rlhi_jax.models.lora import Lora
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.parallel import processes

EMPTY: Mapping[str, Any] = MappingProxyType({})
_SECTIONS = ('objective', 'seed', 'model', 'lora', 'rows', 'train', 'optimizer')


def training_settings(config: ConfigDict) -> dict[str, Any]:
    """Return the settings that determine the trained parameters; a resumed run must have the same values.

    These are the general training settings, the objective's section, and the settings that say which models see the
    persona in training. Settings that may change between restarts (mesh, paths, logging, checkpoint intervals,
    evaluation) are left out. Settings that shape the data are left out too, because the row plan's digest covers them.
    """
    settings = config.to_dict()
    section = [config.objective] if config.objective in settings else []
    switches = [name for name in settings if name.endswith('_sees_persona') and name != 'sampler_sees_persona']
    kept = {name: settings[name] for name in (*_SECTIONS, *section, *switches)}
    del kept['model']['path']
    return kept


def run_identity(config: ConfigDict, model: ModelFolder) -> dict[str, Any]:
    """Return the training settings and the initial model's digest. With the rows, they determine a run's parameters."""
    return {'config': training_settings(config), 'model': model.weights}


def refuse_another_run(workdir: Path, run: dict[str, Any]) -> None:
    """Reject a workdir that is a file, is an imported model's folder, or contains a run that differs from `run`.

    Raises:
      UserError: the workdir is rejected. If settings differ, the message names the first one that differs.
    """
    if workdir.is_file() or (workdir / 'params').exists():
        kind = 'a file' if workdir.is_file() else "an imported model's folder"
        raise UserError(f'--workdir={workdir} is {kind}: use another folder')
    path = workdir / 'run.json'
    if not path.exists():
        return
    stored = read_json(path, 'use another --workdir', fields=())
    # If a key did not exist when the run started, the run behaved as it would with the key's default now.
    defaults = {'config': base_config().to_dict()}
    refuse_difference(f'--workdir={workdir} contains a run', stored, run, defaults=defaults)


def refuse_difference(
    what: str,
    stored: dict[str, Any],
    wanted: dict[str, Any],
    remedy: str = 'use another --workdir',
    defaults: Mapping[str, Any] = EMPTY,
) -> None:
    """Raise an error if the settings of earlier work differ from the current settings.

    Args:
      what: the beginning of the message, such as '--workdir=DIR contains a run'.
      stored: the settings of the earlier work.
      wanted: the current settings.
      remedy: the end of the message.
      defaults: the values to assume for settings that `stored` does not contain.

    Raises:
      UserError: a setting differs; the message names the first such setting.
    """
    before = dict(_flat(defaults)) | dict(_flat(stored))
    for name, value in _flat(wanted):
        if before.get(name) != value:
            raise UserError(f'{what} with a different {name} ({before.get(name)!r}, now {value!r}): {remedy}')


def claim_workdir(
    workdir: Path, run: dict[str, Any], model: ModelFolder, spec: ModelSpec, lora: Lora | None = None
) -> None:
    """Write run.json, which marks a workdir as this run's, and the files that make the workdir a model folder.

    If run.json exists, nothing is written. One process writes the files, and all processes wait until it has finished.
    """
    path = workdir / 'run.json'
    processes.barrier('workdir')
    if processes.is_main() and not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        source = f'{run["config"]["objective"]} on {model.source}'
        described = dict(weights=digest(run), tokens=model.tokens, source=source, tokenizer=model.tokenizer_path)
        describe_model(workdir, spec, **described, adapts=(model, lora) if lora else None)
        write_json(path, run)
    processes.barrier('described')


def _flat(value: Any, name: str = '') -> list[tuple[str, Any]]:
    """Return the dotted names and the values of nested settings, in sorted order."""
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [item for key in sorted(value) for item in _flat(value[key], f'{name}.{key}' if name else key)]
