"""Converts Hugging Face folders and GGUF files to our model folders, and our model folders to Hugging Face folders.

    python -m rlhi_jax.convert import --source=hf:DIR|hf://OWNER/NAME[@REVISION]|gguf:FILE --to=DIR [--template=NAME]
        [--persona_in=user|system]
    python -m rlhi_jax.convert export --checkpoint=DIR --to=DIR [--step=N] [--dtype=float32|bfloat16]

Both commands accept policies and reward models. The exported chat template accepts `persona` and renders exactly the
text that training used.
"""

import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from absl import flags
from jax.sharding import SingleDeviceSharding

from rlhi_jax.cli.program import require_flags, run
from rlhi_jax.conversion import gguf, hf
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder, read_json, write_bytes, write_json
from rlhi_jax.io.hub import on_hub, snapshot
from rlhi_jax.models.checkpoints import describe_model, open_model, params_digest, restore_params, save_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.tokenizers import load_tokenizer
from rlhi_jax.tokenizers.template import ChatTemplate, extend, layouts, special_tokens

_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json',
                    'added_tokens.json', 'generation_config.json')  # fmt: skip
_HUB_FILES = ('config.json', hf.INDEX, 'model*.safetensors', 'chat_template.jinja', *_TOKENIZER_FILES)


def import_model(source: str, to: Path, *, template: str | None, persona_in: str, overwrite: bool = False) -> None:
    """Convert a Hugging Face folder (local or on the hub) or a GGUF file to a model folder with float32 parameters.

    Args:
      source: hf:DIR, hf://OWNER/NAME[@REVISION] or gguf:FILE.
      to: the folder to write.
      template: the name of one of our chat layouts, to use instead of the source's template, or None.
      persona_in: where the template places the persona, 'user' or 'system'.
      overwrite: whether to replace a model folder at `to`.

    Raises:
      UserError: the source is missing, damaged or not supported. If `template` is None, also: the source has no chat
        template, or its chat template lets later turns change earlier text.
    """
    kind, _, name = source.partition(':')
    if kind not in ('hf', 'gguf') or not name:
        raise UserError(f'--source={source} is not hf:DIR, hf://OWNER/NAME or gguf:FILE: use one of these forms')
    path, origin = Path(name), f'{kind}:{Path(name).name}'
    if on_hub(source):
        downloaded = snapshot(source, 'model', _HUB_FILES, '--source')
        path, origin = downloaded.folder, downloaded.name
    if not path.exists():
        raise UserError(f'--source={source} points to {path}, which does not exist: use an existing folder or file')
    if template is not None and template not in layouts():
        raise UserError(f'--template={template} is not one of our layouts: choose one of {", ".join(layouts())}')
    with new_folder(to, overwrite=overwrite) as folder:
        (folder / 'tokenizer').mkdir()
        if kind == 'gguf':
            gguf.write_tokenizer(path, folder / 'tokenizer')
            _finish_tokenizer(folder / 'tokenizer', template, persona_in)
            spec, params, tokens = gguf.read_gguf(path)
        else:
            config = read_json(path / 'config.json', 'set --source to a Hugging Face model folder', fields=())
            spec, tokens = hf.spec_from_hf(config), _token_ids(path, config)
            load_tokenizer(path)  # before the copy, so that errors name the source
            _copy_tokenizer(path, folder / 'tokenizer')
            _finish_tokenizer(folder / 'tokenizer', template, persona_in)
            params = hf.read_params(path, spec)
        weights = params_digest(params)
        save_params(folder / 'params', params)
        describe_model(folder, spec, weights=weights, tokens=tokens, source=origin)


def export_model(checkpoint: Path, to: Path, *, step: int | None, dtype: str, overwrite: bool = False) -> None:
    """Write a model folder or a run's checkpoint as a Hugging Face folder.

    Args:
      checkpoint: the model folder or the run's workdir.
      to: the folder to write.
      step: a step of the run; None means the latest.
      dtype: the type of the written weights, 'float32' or 'bfloat16'.
      overwrite: whether to replace an earlier export at `to`.

    Raises:
      UserError: the checkpoint is missing or damaged, or no Hugging Face class implements the model.
    """
    model = open_model(checkpoint, step)
    params = restore_params(model, _host_params(model.spec))
    with new_folder(to, overwrite=overwrite) as folder:
        for path in sorted(model.tokenizer_path.iterdir()):
            shutil.copyfile(path, folder / path.name)
        write_json(folder / 'config.json', hf.hf_config(model.spec, tokens=model.tokens, dtype=dtype))
        generation = {name: value for name, value in model.tokens.items() if value is not None}
        write_json(
            folder / 'generation_config.json', {'do_sample': True, 'temperature': 1.0, 'top_p': 1.0, **generation}
        )
        if model.spec.head == 'reward':
            (folder / 'generation_config.json').unlink()
        hf.write_params(folder, params, model.spec, dtype=dtype)


def _host_params(spec: ModelSpec) -> Any:
    abstract = nn.unbox(jax.eval_shape(lambda: init_params(Decoder(spec), jax.random.key(0))))
    sharding = SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    read_json(source / 'tokenizer_config.json', 'use a --source that includes its tokenizer', fields=())
    for name in (*_TOKENIZER_FILES, 'chat_template.jinja'):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def _finish_tokenizer(folder: Path, template: str | None, persona_in: str) -> None:
    """Extend the chat template to support personas, check it, and leave it as the only template in the folder."""
    config = read_json(folder / 'tokenizer_config.json', 'import the model again', fields=())
    jinja = config.pop('chat_template', None)
    if isinstance(jinja, list):  # several named templates
        jinja = next((each['template'] for each in jinja if each['name'] == 'default'), None)
    path = folder / 'chat_template.jinja'
    if path.exists():
        jinja = path.read_text(encoding='utf-8')
    if template is not None:
        jinja = layouts()[template].read_text(encoding='utf-8')
    if jinja is None:
        raise UserError(f'--source has no chat template: pass --template=NAME (NAME is one of {", ".join(layouts())})')
    write_json(folder / 'tokenizer_config.json', config)
    extended = extend(jinja, load_tokenizer(folder), special_tokens(folder), placement=persona_in)
    write_bytes(path, extended.encode())
    ChatTemplate.load(folder)


def _token_ids(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the bos, eos and pad token ids of a Hugging Face folder.

    generation_config.json takes precedence over config.json, because it lists all tokens that end a turn.
    """
    path = folder / 'generation_config.json'
    generation = read_json(path, 'fix this file or remove it from --source', fields=()) if path.exists() else {}
    names = ('bos_token_id', 'eos_token_id', 'pad_token_id')
    return {name: generation.get(name, config.get(name)) for name in names}


def _define_flags() -> None:
    flags.DEFINE_string('source', None, 'import: hf:DIR, hf://OWNER/NAME[@REVISION] or gguf:FILE.')
    flags.DEFINE_string('to', None, 'Folder to write.')
    flags.DEFINE_string('template', None, "import: one of our chat layouts, to use instead of the model's template.")
    flags.DEFINE_string('persona_in', 'user', 'import: where the template places the persona, user or system.')
    flags.DEFINE_string('checkpoint', None, 'export: a model folder or the workdir of a run.')
    flags.DEFINE_integer('step', None, 'export: step of the run; by default, the latest.')
    flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'export: dtype of the written weights.')
    flags.DEFINE_bool('overwrite', False, 'Replace the folder given by --to if it exists.')


def main(command: str) -> None:
    require_flags('source' if command == 'import' else 'checkpoint', 'to')
    to = Path(flags.FLAGS.to).absolute()
    if command == 'import':
        import_model(
            flags.FLAGS.source,
            to,
            template=flags.FLAGS.template,
            persona_in=flags.FLAGS.persona_in,
            overwrite=flags.FLAGS.overwrite,
        )
    else:
        export_model(
            Path(flags.FLAGS.checkpoint),
            to,
            step=flags.FLAGS.step,
            dtype=flags.FLAGS.dtype,
            overwrite=flags.FLAGS.overwrite,
        )
    print(f'wrote {to}')


if __name__ == '__main__':
    _define_flags()
    run(main, commands=('import', 'export'))
