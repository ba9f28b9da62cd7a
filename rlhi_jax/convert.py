"""Hugging Face folders and GGUF files ⇄ our model folders, policies and reward models alike.

    python -m rlhi_jax.convert import --source=hf:DIR|hf://OWNER/NAME[@REVISION]|gguf:FILE --to=DIR [--template=NAME]
        [--persona_in=user|system]
    python -m rlhi_jax.convert export --checkpoint=DIR --to=DIR [--step=N] [--dtype=float32|bfloat16]

The exported chat template takes `persona` and renders exactly what training saw.
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
    """Read a Hugging Face folder, here or on the hub, or a GGUF file and write a model folder with float32 parameters.

    Raises:
      UserError: the source is missing, damaged or of a kind that is not supported; or its chat template is missing or
        does not keep prefixes stable, and `template` names no layout of ours.
    """
    kind, _, name = source.partition(':')
    if kind not in ('hf', 'gguf') or not name:
        raise UserError(f'--source={source} is neither hf:DIR, hf://OWNER/NAME nor gguf:FILE: say which')
    path, told = Path(name), f'{kind}:{Path(name).name}'
    if on_hub(source):
        found = snapshot(source, 'model', _HUB_FILES, '--source')
        path, told = found.folder, found.name
    if not path.exists():
        raise UserError(f'--source={source}: {path} does not exist')
    if template is not None and template not in layouts():
        raise UserError(f'--template={template} is no layout of ours: choose one of {", ".join(layouts())}')
    with new_folder(to, overwrite=overwrite) as folder:
        (folder / 'tokenizer').mkdir()
        if kind == 'gguf':
            gguf.write_tokenizer(path, folder / 'tokenizer')
            _finish_tokenizer(folder / 'tokenizer', template, persona_in)
            spec, params, tokens = gguf.read_gguf(path)
        else:
            config = read_json(path / 'config.json', 'name a Hugging Face model folder')
            spec, tokens = hf.spec_from_hf(config), _token_ids(path, config)
            _copy_tokenizer(path, folder / 'tokenizer')
            _finish_tokenizer(folder / 'tokenizer', template, persona_in)
            params = hf.read_params(path, spec)
        described = dict(weights=params_digest(params), tokens=tokens, source=told)
        save_params(folder / 'params', params)
        describe_model(folder, spec, **described)


def export_model(checkpoint: Path, to: Path, *, step: int | None, dtype: str, overwrite: bool = False) -> None:
    """Write a model folder's or a run's parameters as a Hugging Face folder.

    Raises:
      UserError: the checkpoint is missing or damaged.
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
    for name in (*_TOKENIZER_FILES, 'chat_template.jinja'):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def _finish_tokenizer(folder: Path, template: str | None, persona_in: str) -> None:
    """Leave one chat template in the folder, extended for personas and checked."""
    config = read_json(folder / 'tokenizer_config.json', 'name a source that holds its tokenizer')
    own = config.pop('chat_template', None)
    if isinstance(own, list):  # several named templates
        own = next((each['template'] for each in own if each['name'] == 'default'), None)
    path = folder / 'chat_template.jinja'
    if path.exists():
        own = path.read_text(encoding='utf-8')
    if template is not None:
        own = layouts()[template].read_text(encoding='utf-8')
    if own is None:
        raise UserError(f'the source has no chat template: pass --template=NAME, one of {", ".join(layouts())}')
    write_json(folder / 'tokenizer_config.json', config)
    extended = extend(own, load_tokenizer(folder), special_tokens(folder), placement=persona_in)
    write_bytes(path, extended.encode())
    ChatTemplate.load(folder)


def _token_ids(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """bos, eos and pad ids: generation_config.json knows best which tokens end a turn, then config.json."""
    path = folder / 'generation_config.json'
    generation = read_json(path, 'mend it') if path.exists() else {}
    names = ('bos_token_id', 'eos_token_id', 'pad_token_id')
    return {name: generation.get(name, config.get(name)) for name in names}


def _define_flags() -> None:
    flags.DEFINE_string('source', None, 'import: hf:DIR, hf://OWNER/NAME[@REVISION] or gguf:FILE.')
    flags.DEFINE_string('to', None, 'Folder to write.')
    flags.DEFINE_string('template', None, "import: one of our own chat layouts, instead of the model's.")
    flags.DEFINE_string('persona_in', 'user', 'import: where the persona stands, user or system.')
    flags.DEFINE_string('checkpoint', None, 'export: a model folder or a workdir.')
    flags.DEFINE_integer('step', None, 'export: a step of the workdir; the latest if not given.')
    flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'export: dtype of the weights.')
    flags.DEFINE_bool('overwrite', False, 'Replace the folder to write if it exists.')


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
