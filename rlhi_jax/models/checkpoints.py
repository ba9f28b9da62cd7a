"""Reads and writes model folders and run checkpoints with Orbax.

`convert import` writes model folders, and every run's workdir is also a model folder:

    model.json        {"spec", "weights": a digest of the parameters, "tokens": bos, eos and pad ids, "source"};
                      with adapters, also "base": {"path", "step" and "weights" of the base
                      model, "lora": settings of the adapters}
    tokenizer/        the tokenizer's files, chat_template.jinja, generation_config.json
    params/           in an imported model: the parameters
    checkpoints/N/    in a run: params, optimizer, progress (step, seed)

If a model has adapters, its folder stores only the adapters and any reward head, not the base model.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import digest, read_json, write_json
from rlhi_jax.models.lora import Lora
from rlhi_jax.models.spec import ModelSpec

_CHUNK = 2**26  # bytes
_REMEDY = 'use a training workdir or a folder made by `python -m rlhi_jax.convert import`'


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    Attributes:
      weights: digest that identifies the parameters, computed from their bytes or from the run and step that made them.
      tokens: special token ids, under the keys `bos_token_id`, `eos_token_id` and `pad_token_id`.
      source: where the model comes from, such as 'dpo on hf:NAME'.
      base: the model to which the adapters apply; None if the model has no adapters.
      lora: the settings of the adapters; None if the model has no adapters.
    """

    path: Path
    params_path: Path
    spec: ModelSpec
    weights: str
    tokens: dict[str, Any]
    source: str
    base: 'ModelFolder | None' = None
    lora: Lora | None = None

    @property
    def step(self) -> int | None:
        """The step of the run at which the model was saved; None for an imported model."""
        return int(self.params_path.parent.name) if self.params_path.parent != self.path else None

    @property
    def tokenizer_path(self) -> Path:
        return self.path / 'tokenizer'


def open_model(folder: str | Path, step: int | None = None) -> ModelFolder:
    """Open the model in a folder without reading its parameters.

    For a run, this is the model saved at `step` (by default, at the latest step).

    Raises:
      UserError: the folder is not a model folder or has no checkpoint at `step`; or the model has adapters, and their
        base model is missing or has changed.
    """
    folder = Path(folder).absolute()
    description = read_json(folder / 'model.json', _REMEDY, fields=('spec', 'weights', 'tokens', 'source'))
    params, weights = folder / 'params', description['weights']
    if not params.exists():
        steps = saved_steps(folder)
        if not steps:
            raise UserError(f'{folder} has no checkpoint yet: continue the training')
        if step not in (None, *steps):
            raise UserError(f'{folder} has no checkpoint for step {step} (it has {steps}): choose one of these steps')
        step = steps[-1] if step is None else step
        params = folder / 'checkpoints' / str(step) / 'params'
        weights = weights_at(weights, step)
    spec = ModelSpec.from_json(description['spec'])
    base, lora = _open_base(folder, description['base']) if 'base' in description else (None, None)
    return ModelFolder(folder, params, spec, weights, description['tokens'], str(description['source']), base, lora)


def open_reward_model(folder: str | Path, key: str) -> ModelFolder:
    """Open a reward model like `open_model`; `key` names the setting that gives the folder.

    Raises:
      UserError: as for `open_model`, or the model has no reward head.
    """
    model = open_model(folder)
    if model.spec.head != 'reward':
        raise UserError(f'{key}: {folder} is not a reward model: name one')
    return model


def _open_base(folder: Path, stored: dict[str, Any]) -> tuple[ModelFolder, Lora]:
    remedy = f'restore that model, or correct its path in {folder / "model.json"}'
    adapters = f'{folder} contains adapters for the model {stored["path"]} with weights {stored["weights"]}'
    try:
        base = open_model(stored['path'], stored['step'])
    except UserError as error:
        raise UserError(f'{adapters}, but that model cannot be opened ({one_line(error)[:300]}): {remedy}') from None
    if base.weights != stored['weights']:
        raise UserError(f'{adapters}, but that model now has weights {base.weights}: {remedy}')
    return base, Lora.from_json(stored['lora'])


def weights_at(run: str, step: int) -> str:
    """Return the digest that identifies a training run's parameters at one step.

    `run` is the digest stored as `weights` in the run's model.json.
    """
    return digest(run, step)


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of a run's complete checkpoints, in increasing order."""
    folder = Path(workdir) / 'checkpoints'
    # Orbax removes the metadata first when it deletes a checkpoint.
    complete = [path.parent.name for path in folder.glob('*/_CHECKPOINT_METADATA')]
    return sorted(int(name) for name in complete if name.isdigit())


def describe_model(
    folder: Path,
    spec: ModelSpec,
    *,
    weights: str,
    tokens: dict[str, Any],
    source: str,
    tokenizer: Path | None = None,
    adapts: tuple[ModelFolder, Lora] | None = None,
) -> None:
    """Write a model folder's model.json and, if the folder has no tokenizer yet, its tokenizer.

    The tokenizer is copied from the folder `tokenizer`; if `tokenizer` is None, only model.json is written. `adapts`
    contains the base model and the settings of the adapters that the folder stores; it is None for a model without
    adapters.
    """
    if tokenizer is not None and not (folder / 'tokenizer').exists():
        temporary = folder / '.tokenizer.tmp'
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(tokenizer, temporary)
        temporary.replace(folder / 'tokenizer')
    description = dict(spec=spec.to_json(), weights=weights, tokens=tokens, source=source)
    if adapts:
        base, lora = adapts
        description['base'] = dict(
            path=str(base.path.resolve()), step=base.step, weights=base.weights, lora=lora.to_json()
        )
    write_json(folder / 'model.json', description)


def params_digest(params: Any) -> str:
    """Return a digest of the names, shapes and bytes of all parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
    return digest(*(digest(name, list(leaf.shape), leaf.data.cast('B')) for name, leaf in named.items()))


def save_params(folder: Path, params: Any) -> None:
    """Write parameters as one Orbax checkpoint, copying only a small part of them in memory at a time."""
    # By default, Orbax copies numpy arrays and compresses all of them into files of 2 GB before it writes any.
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, handlers.ArrayHandler())
    )
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), params)
    arguments = ocp.args.PyTreeSave(params, save_args=chunked, ocdbt_target_data_file_size=_CHUNK)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(Path(folder).absolute(), arguments)


def restore_params(model: ModelFolder, abstract: Any) -> Any:
    """Return a model's stored parameters, with the shapes, dtypes and shardings of `abstract`.

    Raises:
      UserError: the checkpoint is damaged, or its parameters do not match the model's description.
    """
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_who_restores(abstract)) as checkpointer:
            return checkpointer.restore(model.params_path, abstract)
    except Exception as error:  # for a damaged file, TensorStore raises a bare Exception
        raise UserError(
            f'{model.params_path} cannot be read as a {model.spec.family} model with the {model.spec.head!r} head '
            f'({one_line(error)[:300]}): import or train the model again'
        ) from None


def _who_restores(abstract: Any) -> ocp.options.MultiprocessingOptions:
    """Return Orbax options that let a process restore parameters to its own devices without waiting for the others."""
    shardings = [getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(abstract)]
    if not all(sharding is None or sharding.is_fully_addressable for sharding in shardings):
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process_{me}'
    )


class RunCheckpoints:
    """The newest `keep` checkpoints of a run.

    Checkpoints are written asynchronously, and only complete checkpoints are read.
    """

    def __init__(self, workdir: Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(workdir).absolute() / 'checkpoints', options=options)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, params: Any, optimizer: Any, progress: dict[str, Any]) -> None:
        """Start writing a checkpoint; readers see it only when all of it is on disk.

        Raises:
          UserError: the disk has less free space than the checkpoint needs.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer)))
        if (free := shutil.disk_usage(self._manager.directory).free) < needed:
            raise UserError(
                f'{self._manager.directory} has {free / 1e6:,.1f} MB of free space, but a checkpoint needs '
                f'{needed / 1e6:,.1f} MB: free some space and run the same command to resume'
            )
        items = dict(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.JsonSave(progress),
        )
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Return the parameters, the optimizer state and the progress in a checkpoint.

        The abstract trees `params` and `optimizer` give the shapes, dtypes and shardings to restore.

        Raises:
          UserError: the checkpoint is damaged.
        """
        items = dict(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._restore(step, items)
        return restored['params'], restored['optimizer'], restored['progress']

    def progress(self, step: int) -> dict[str, Any]:
        """Return the progress in a checkpoint without reading its parameters. Errors are as in `restore`."""
        return self._restore(step, dict(progress=ocp.args.JsonRestore()))['progress']

    def _restore(self, step: int, items: dict[str, Any]) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # for a damaged file, TensorStore raises a bare Exception
            path = self._manager.directory / str(step)
            raise UserError(
                f'the checkpoint {path} cannot be read ({one_line(error)[:300]}): remove that folder to resume from '
                'the previous checkpoint'
            ) from None

    def close(self) -> None:
        """Wait until every checkpoint that `save` started is complete, then close the checkpoint manager."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return ShapeDtypeStructs that tell Orbax where to place each array."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
