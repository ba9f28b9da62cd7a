"""Checks a Hugging Face model folder, and copies its tokenizer, before any weights are read."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhi_jax.conversion.hf import INDEX, SINGLE
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.tokenizers.added_tokens import added_tokens
from rlhi_jax.tokenizers.renderer import layouts

TOKENIZER_FILES = (
    'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    'generation_config.json',
)  # fmt: skip


def check_source(path: Path) -> None:
    """Check that a folder contains a complete model in safetensors format, with its tokenizer.

    Raises:
      UserError: the check fails; the message says what is wrong with the folder, and what to do.
    """
    if not path.is_dir():
        raise UserError(f'--source: {path} is not a folder: use the folder that contains config.json')
    if (path / 'adapter_config.json').exists():
        base = read_json(path / 'adapter_config.json', 'download it again', fields=()).get('base_model_name_or_path')
        raise UserError(
            f'--source: {path} is a LoRA adapter of {base}, not a whole model: import that model, and then the '
            f'adapter with --source=peft:{path} --base=FOLDER'
        )
    if not (path / 'config.json').exists():
        raise UserError(f'--source: {path} has no config.json: use a Hugging Face model folder')
    if not (path / SINGLE).exists() and not (path / INDEX).exists():
        pickled = sorted(
            each.name for pattern in ('pytorch_model*.bin', '*.pth', '*.pt') for each in path.glob(pattern)
        )
        if pickled:
            raise UserError(
                f'--source: {path} contains no {SINGLE}, only {pickled[0]}, which may run code when it is read: '
                'convert it to safetensors with `transformers`'
            )
        raise UserError(f'--source: {path} has neither {SINGLE} nor {INDEX}: download the model again')
    if not any((path / name).exists() for name in ('tokenizer.json', 'tokenizer.model')):
        slow = [name for name in ('vocab.json', 'merges.txt', 'vocab.txt', 'spiece.model') if (path / name).exists()]
        remedy = (
            f'convert {", ".join(slow)} to tokenizer.json with `transformers`'
            if slow
            else 'copy the tokenizer of its base model'
        )
        raise UserError(f'--source: {path} has neither tokenizer.json nor tokenizer.model: {remedy}')
    if not (path / 'tokenizer_config.json').exists():
        raise UserError(f'--source: {path} has no tokenizer_config.json: copy it from the base model')


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a model's tokenizer files, and add to tokenizer.json the tokens that only other files define.

    Raises:
      UserError: the files contradict each other about the id of a token.
    """
    tokens = added_tokens(source)
    for name in (*TOKENIZER_FILES, 'chat_template.jinja'):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / 'tokenizer.json').exists():
        return  # `SentencePieceTokenizer` reads the other files itself
    description = read_json(folder / 'tokenizer.json', 'download the model again', fields=('model', 'added_tokens'))
    added = {token['content']: token['id'] for token in description['added_tokens']}
    vocabulary = description['model'].get('vocab')
    ids = vocabulary if isinstance(vocabulary, dict) else {piece: i for i, (piece, *_) in enumerate(vocabulary or [])}
    missing = [(token, fields) for token, fields in tokens if fields['content'] not in added]
    following = max([*ids.values(), *added.values()], default=-1) + 1
    for token, fields in missing:
        expected = ids.get(fields['content'], following)
        if token != expected:
            raise UserError(
                f'{source}: tokenizer_config.json gives the token {fields["content"]!r} the id {token}, but '
                f'tokenizer.json implies the id {expected}: save the tokenizer again with `transformers`'
            )
        following += fields['content'] not in ids
        description['added_tokens'].append({'id': token, **fields})
    if missing:
        description['added_tokens'].sort(key=lambda token: token['id'])
        write_json(folder / 'tokenizer.json', description)


def chat_template(folder: Path) -> str:
    """Return a folder's chat template, from chat_template.jinja or, if that is missing, from tokenizer_config.json.

    Any template in tokenizer_config.json is removed from that file.

    Raises:
      UserError: the folder has no template, or only templates for special purposes.
    """
    config = read_json(folder / 'tokenizer_config.json', 'import the model again', fields=())
    template = config.pop('chat_template', None)
    write_json(folder / 'tokenizer_config.json', config)
    if (folder / 'chat_template.jinja').exists():
        return (folder / 'chat_template.jinja').read_text(encoding='utf-8')
    if isinstance(template, list):
        named = {each.get('name'): each.get('template') for each in template if isinstance(each, dict)}
        if 'default' not in named:
            raise UserError(
                f"the source has no chat template named 'default', only {', '.join(map(str, named))}: choose a "
                f'built-in template with --template=NAME (NAME is one of {", ".join(layouts())})'
            )
        template = named['default']
    if not isinstance(template, str):
        raise UserError(
            f'the source has no chat template: pass --template=NAME (NAME is one of {", ".join(layouts())})'
        )
    return template


def token_ids(folder: Path, config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return the bos, eos and pad token ids of a Hugging Face folder.

    generation_config.json takes precedence over config.json, because it lists all tokens that end a turn.

    Raises:
      UserError: an id is not in the vocabulary.
    """
    path = folder / 'generation_config.json'
    generation = read_json(path, 'fix this file', fields=()) if path.exists() else {}
    ids = {}
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
        value = ids[name] = generation.get(name, config.get(name))
        for token in value if isinstance(value, list) else [value]:
            if token is not None and (type(token) is not int or not 0 <= token < vocab_size):
                raise UserError(
                    f'{folder}: {name} is {json.dumps(token)}, which is not a token of the vocabulary (0 to '
                    f'{vocab_size - 1}): correct it in generation_config.json or config.json'
                )
    return ids
