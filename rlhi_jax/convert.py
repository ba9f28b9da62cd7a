"""Converts Hugging Face folders and GGUF files to our model folders, and our model folders to Hugging Face folders.

    python -m rlhi_jax.convert import --source=hf:DIR|hf://OWNER/NAME[@REVISION]|gguf:FILE --to=DIR [--template=NAME]
        [--persona_in=user|each_user|system] [--pad_token=TOKEN] [--reward_token=TOKEN]
    python -m rlhi_jax.convert import --source=peft:DIR --base=DIR --to=DIR
    python -m rlhi_jax.convert export --checkpoint=DIR --to=DIR [--step=N] [--dtype=float32|bfloat16]
        [--format=huggingface|peft]

Both commands accept policies and reward models. A model with adapters is exported either as a whole model with the
adapters merged, or as a `peft` folder that contains only the adapters. The exported chat template accepts `persona` and
renders exactly the text that training used. The README.md of an exported whole model describes the model and shows code
that uses it.
"""

from absl import flags

from rlhi_jax.cli.program import require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    flags.DEFINE_string('source', None, 'import: hf:DIR, hf://OWNER/NAME[@REVISION], gguf:FILE or peft:DIR.')
    flags.DEFINE_string('to', None, 'Folder to write.')
    flags.DEFINE_string('base', None, 'import peft:DIR: the model folder or workdir that the adapters adapt.')
    flags.DEFINE_string('template', None, "import: one of our chat layouts, to use instead of the model's template.")
    flags.DEFINE_string('persona_in', 'user', 'import: messages that get the persona: user, each_user or system.')
    flags.DEFINE_string(
        'pad_token', None, "import: special token that pads batches; by default, the model's own or an unused token."
    )
    flags.DEFINE_string(
        'reward_token',
        None,
        'import: special token after a reply at which a reward model is read; by default, the last token of the reply.',
    )
    flags.DEFINE_string('checkpoint', None, 'export: a model folder or the workdir of a run.')
    flags.DEFINE_integer('step', None, 'export: step of the run; by default, the latest.')
    flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'export: dtype of the written weights.')
    flags.DEFINE_enum('format', 'huggingface', ['huggingface', 'peft'], 'export: a whole model, or its adapters alone.')
    flags.DEFINE_bool('overwrite', False, 'Replace the folder given by --to if it exists.')
    COMMAND = start(commands=('import', 'export'))

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rlhi_jax.conversion import gguf, hf, peft
from rlhi_jax.conversion.readme import readme
from rlhi_jax.conversion.source import TOKENIZER_FILES, chat_template, check_source, copy_tokenizer, token_ids
from rlhi_jax.conversion.special_tokens import add_reward_token, finish_tokens
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, new_folder, read_json, write_bytes, write_json
from rlhi_jax.io.hub import on_hub, snapshot
from rlhi_jax.models.checkpoints import ModelFolder, describe_model, open_model, params_digest, save_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import load_params, load_trained
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.tokenizers import load_tokenizer
from rlhi_jax.tokenizers.renderer import layouts
from rlhi_jax.tokenizers.template import extend, special_tokens
from rlhi_jax.tokenizers.trial import try_tokenizer
from rlhi_jax.training.model import check_pad_token

_HUB_FILES = (
    'config.json',
    hf.INDEX,
    'model*.safetensors',
    'chat_template.jinja',
    'adapter_config.json',
    *TOKENIZER_FILES,
)
_SAMPLING = dict(do_sample=True, temperature=1.0, top_p=1.0)  # for models without sampling settings of their own


def import_model(
    source: str,
    to: Path,
    *,
    template: str | None,
    persona_in: str,
    pad_token: str | None = None,
    reward_token: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a Hugging Face folder (local or on the hub) or a GGUF file to a model folder with float32 parameters.

    Args:
      source: hf:DIR, hf://OWNER/NAME[@REVISION] or gguf:FILE.
      to: the folder to write.
      template: the name of one of our chat layouts, to use instead of the source's template; None keeps the
        source's template.
      persona_in: where the template places the persona: 'user' (the first user turn), 'each_user' or 'system'.
      pad_token: the pad token; None means the model's own pad token, or an unused special token if that is unsuitable.
      reward_token: the special token after a reply at which a reward model is read. None means the token that the
        model's class uses (Athene), or none: the reward is then read at the last token of the reply.
      overwrite: whether to replace a model folder at `to`.

    Raises:
      UserError: the source is missing, damaged or not supported, or the reward token is not one of its special tokens.
        If `template` is None, this is also raised if the source has no chat template, or if its chat template lets
        later turns change earlier text.
    """
    kind, _, name = source.partition(':')
    if kind not in ('hf', 'gguf') or not name:
        raise UserError(
            f'--source={source} is not hf:DIR, hf://OWNER/NAME, gguf:FILE or peft:DIR: use one of these forms'
        )
    path, origin = Path(name), f'{kind}:{Path(name).name}'
    if on_hub(source):
        downloaded = snapshot(source, 'model', _HUB_FILES, '--source')
        path, origin = downloaded.folder, downloaded.name
    if not path.exists():
        raise UserError(f'--source={source} points to {path}, which does not exist: use an existing folder or file')
    if template is not None and template not in layouts():
        raise UserError(f'--template={template} is not a known layout: choose one of {", ".join(layouts())}')
    with new_folder(to, overwrite=overwrite) as folder:
        (tokenizer := folder / 'tokenizer').mkdir()
        write = gguf.write_tokenizer if kind == 'gguf' else _copy_checked
        write(path, tokenizer)
        _finish_template(tokenizer, template, persona_in, origin)
        if kind == 'gguf':
            add_reward_token(tokenizer, reward_token, head='lm', reads_cls=False)
            spec, params, tokens = gguf.read_gguf(path)
            tokens = finish_tokens(tokens, tokenizer, spec, pad_token, origin)
        else:
            config = read_json(path / 'config.json', 'set --source to a Hugging Face model folder', fields=())
            spec = hf.spec_from_hf(config)
            add_reward_token(tokenizer, reward_token, head=spec.head, reads_cls=hf.reads_cls_token(config))
            tokens = finish_tokens(token_ids(path, config, spec.vocab_size), tokenizer, spec, pad_token, origin)
            params = hf.read_params(path, spec)
        weights = params_digest(params)
        save_params(folder / 'params', params)
        describe_model(folder, spec, weights=weights, tokens=tokens, source=origin)


def _copy_checked(source: Path, folder: Path) -> None:
    check_source(source)
    copy_tokenizer(source, folder)


def _finish_template(folder: Path, template: str | None, persona_in: str, origin: str) -> None:
    """Write the chat template of a tokenizer folder, extended to accept personas; `template` may name a layout."""
    jinja = chat_template(folder) if template is None else layouts()[template].read_text(encoding='utf-8')
    write_bytes(folder / 'chat_template.jinja', jinja.encode())
    try_tokenizer(folder, persona_in, origin)
    extended = extend(jinja, load_tokenizer(folder), special_tokens(folder), placement=persona_in)
    write_bytes(folder / 'chat_template.jinja', extended.encode())


def import_adapters(source: Path, base: Path, to: Path, *, overwrite: bool = False) -> None:
    """Convert a `peft` folder to a model folder that contains the adapters and names their base model.

    Args:
      source: a folder with adapter_config.json and adapter_model.safetensors.
      base: the model folder or workdir of the model that the adapters were trained on.
      to: the folder to write.
      overwrite: whether to replace a model folder at `to`.

    Raises:
      UserError: the source is missing, damaged or not supported, or does not fit the base.
    """
    model = open_model(base)
    spec, lora, trained = peft.read_adapters(source, model.spec)
    adapted = ModelFolder(model.path, model.params_path, spec, model.weights, model.tokens, model.source)
    if spec.head == 'reward':
        check_pad_token(adapted)
    weights = digest(model.weights, lora.to_json(), params_digest(trained))
    described = dict(tokens=model.tokens, source=f'peft on {model.source}', tokenizer=model.tokenizer_path)
    with new_folder(to, overwrite=overwrite) as folder:
        save_params(folder / 'params', trained)
        describe_model(folder, spec, weights=weights, **described, adapts=(model, lora))


def export_adapters(checkpoint: Path, to: Path, *, step: int | None, dtype: str, overwrite: bool = False) -> None:
    """Write the adapters of a model as a `peft` folder, with the tokenizer.

    The arguments are the same as for `export_model`.

    Raises:
      UserError: the checkpoint is missing or damaged, or has no adapters.
    """
    model = open_model(checkpoint, step)
    if model.lora is None:
        raise UserError(f'--checkpoint={checkpoint} has no adapters: export it with --format=huggingface')
    with new_folder(to, overwrite=overwrite) as folder:
        for path in sorted(model.tokenizer_path.iterdir()):
            shutil.copyfile(path, folder / path.name)
        peft.write_adapters(folder, model, load_trained(model, _host_mesh()), dtype=dtype)


def export_model(checkpoint: Path, to: Path, *, step: int | None, dtype: str, overwrite: bool = False) -> None:
    """Write a model folder or a run's checkpoint as a Hugging Face folder, with any adapters merged.

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
    if model.spec.head == 'reward':
        check_pad_token(model)
    params = load_params(Decoder(model.spec), model, _host_mesh(), seed=0)
    with new_folder(to, overwrite=overwrite) as folder:
        for path in sorted(model.tokenizer_path.iterdir()):
            shutil.copyfile(path, folder / path.name)
        write_json(folder / 'config.json', hf.hf_config(model.spec, tokens=model.tokens, dtype=dtype))
        if model.spec.head == 'reward':
            (folder / 'generation_config.json').unlink(missing_ok=True)
        else:
            write_json(folder / 'generation_config.json', _generation_config(folder, model.tokens))
        hf.write_params(folder, params, model.spec, dtype=dtype)
        write_bytes(folder / 'README.md', readme(model, dtype=dtype).encode())


def _generation_config(folder: Path, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source's sampling settings (or ours if the source has none) and the model's special tokens."""
    path = folder / 'generation_config.json'
    theirs = read_json(path, 'import the model again', fields=()) if path.exists() else {}
    settings = {
        name: value for name, value in theirs.items() if name not in ('transformers_version', '_from_model_config')
    }
    stated = settings.keys() - tokens.keys()
    return (settings if stated else _SAMPLING) | {name: id_ for name, id_ in tokens.items() if id_ is not None}


def _host_mesh() -> Mesh:
    return make_mesh(dict(data=1, fsdp=1, tensor=1), jax.local_devices(backend='cpu')[:1])


def main(command: str) -> None:
    require_flags('source' if command == 'import' else 'checkpoint', 'to')
    to = Path(flags.FLAGS.to).absolute()
    kind, _, name = (flags.FLAGS.source or '').partition(':')
    if command == 'import' and kind == 'peft':
        require_flags('base')
        own = ('template', 'pad_token', 'reward_token')
        if changed := [each for each in own if flags.FLAGS[each].value is not None]:
            raise UserError(
                f'--{changed[0]} does not apply to --source=peft:DIR, which uses the tokenizer of --base: remove it'
            )
        import_adapters(Path(name), Path(flags.FLAGS.base), to, overwrite=flags.FLAGS.overwrite)
    elif command == 'import':
        import_model(
            flags.FLAGS.source,
            to,
            template=flags.FLAGS.template,
            persona_in=flags.FLAGS.persona_in,
            pad_token=flags.FLAGS.pad_token,
            reward_token=flags.FLAGS.reward_token,
            overwrite=flags.FLAGS.overwrite,
        )
    else:
        export = export_model if flags.FLAGS.format == 'huggingface' else export_adapters
        export(
            Path(flags.FLAGS.checkpoint),
            to,
            step=flags.FLAGS.step,
            dtype=flags.FLAGS.dtype,
            overwrite=flags.FLAGS.overwrite,
        )
    print(f'wrote {to}')


if __name__ == '__main__':
    run(lambda: main(COMMAND))
