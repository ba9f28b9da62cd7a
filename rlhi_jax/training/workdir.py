"""Ensures that a workdir contains only one run, and that the run resumes only with the same settings."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, read_json, write_json
from rlhi_jax.models.checkpoints import ModelFolder, describe_model
from rlhi_jax.models.lora import Lora
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel import processes

_SECTIONS = ('objective', 'seed', 'model', 'rows', 'train', 'optimizer')


def training_settings(config: ConfigDict) -> dict[str, Any]:
    """Return the settings that determine the trained parameters; a resumed run must have the same values.

    These are the general training settings, the section of each objective, and the settings that say which models see
    the persona in training. Settings that may change between restarts (mesh, paths, logging, checkpoint intervals,
    evaluation) are left out. Settings that shape the data are left out too, because the row plan's digest covers them.
    """
    settings = settings_in_use(config)
    objectives = [name for name in OBJECTIVES if name in settings]
    switches = [name for name in settings if name.endswith('_sees_persona') and name != 'sampler_sees_persona']
    adapters = [name for name in settings if name == 'lora']
    kept = {name: settings[name] for name in (*_SECTIONS, *objectives, *switches, *adapters)}
    del kept['model']['path']
    return kept


def settings_in_use(config: ConfigDict) -> dict[str, Any]:
    """Return all settings, without the section on adapters if there are none; it then has no effect."""
    settings = config.to_dict()
    if not config.lora.rank:
        del settings['lora']
    return settings


def run_identity(config: ConfigDict, model: ModelFolder) -> dict[str, Any]:
    """Return the training settings and the initial model's digest; with the rows, they determine a run's parameters."""
    return {'config': training_settings(config), 'model': model.weights}


def refuse_another_run(workdir: Path, run: dict[str, Any]) -> None:
    """Reject a workdir that is a file, is an imported model's folder, or contains a run with settings other than `run`.

    Raises:
      UserError: the workdir is rejected. If settings differ, the message names the first setting that does.
    """
    if workdir.is_file() or (workdir / 'params').exists():
        kind = 'a file' if workdir.is_file() else "an imported model's folder"
        raise UserError(f'--workdir={workdir} is {kind}: use another folder')
    path = workdir / 'run.json'
    if not path.exists():
        return
    stored = read_json(path, f'remove {workdir} or use another --workdir', fields=())
    refuse_difference(f'--workdir={workdir} contains a run', stored, run)


def refuse_difference(what: str, stored: dict[str, Any], wanted: dict[str, Any], remedy: str = '') -> None:
    """Raise an error if earlier work was started with settings other than `wanted`.

    Of the inputs of the earlier work, only those in `wanted` are compared; of the settings (`config`), all.

    Args:
      what: the beginning of the message, such as '--workdir=DIR contains a run'.
      stored: the settings of the earlier work.
      wanted: the current settings.
      remedy: a further remedy to suggest, in addition to undoing the change and using another workdir.

    Raises:
      UserError: a setting differs; the message names the first such setting.
    """
    before, now = dict(_flat(stored)), dict(_flat(wanted))
    for name in sorted({name for name in before if name.startswith('config.')} | now.keys()):
        if before.get(name) != (value := now.get(name)):
            raise UserError(
                f'{what} with a different {name} ({before.get(name)!r}, now {value!r}): undo the change, '
                f'{remedy and remedy + ", "}or use another --workdir'
            )


def claim_workdir(
    workdir: Path, run: dict[str, Any], model: ModelFolder, spec: ModelSpec, lora: Lora | None = None
) -> None:
    """Write run.json, which marks the workdir as this run's own, and the files that make it a model folder.

    One process writes the files, and all processes wait until they are written.
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
    if not isinstance(value, dict):
        return [(name, value)]
    return [item for key in sorted(value) for item in _flat(value[key], f'{name}.{key}' if name else key)]
