"""Hugging Face folders with tiny models, which `convert import` imports or refuses."""

import json
from pathlib import Path

import pytest
import tokenizers
from conversion_models import random_params, tiny_spec, write_folder
from template_families import FAMILIES, write_family

from rlhi_jax.convert import import_model
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import open_model

VOCAB = 1000
SPARE = '<|reserved_special_token_0|>'
TOKENS = dict(bos_token_id=None, eos_token_id=2, pad_token_id=0)


def edit(path: Path, **changes) -> None:
    """Change fields of a JSON file; None removes a field."""
    record = json.loads(path.read_text()) if path.exists() else {}
    record |= changes
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def source(folder: Path, family: str = 'chatml', head: str = 'lm', spare: bool = True, **tokens) -> Path:
    """A Hugging Face folder with the tokenizer and template of a family; `tokens` are ids for config.json."""
    spec = tiny_spec(vocab_size=VOCAB, head=head)
    write_folder(folder, spec, random_params(spec))
    write_family(folder, FAMILIES[family])
    if spare:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
        tokenizer.add_special_tokens([SPARE])
        tokenizer.save(str(folder / 'tokenizer.json'))
    edit(folder / 'tokenizer_config.json', chat_template=FAMILIES[family].template)
    edit(folder / 'config.json', **TOKENS | tokens)
    return folder


def imported(folder: Path, **options):
    to = folder.with_name(f'{folder.name}_imported')
    options = dict(template=None, persona_in='user', overwrite=True) | options
    import_model(f'hf:{folder}', to, **options)
    return open_model(to)


def refused(folder: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message):
        imported(folder, **options)
    assert not folder.with_name(f'{folder.name}_imported').exists()
