"""What `convert import` refuses or keeps of a folder: what is not a whole model, damaged weights, and configs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from import_sources import edit, imported, refused, source

from rlhi_jax.conversion.safetensors_file import read_header
from rlhi_jax.convert import export_model
from rlhi_jax.io.errors import UserError


def test_sources_that_are_not_models_say_what_they_are(tmp_path):
    folder = source(tmp_path / 'a')
    weights = folder / 'model.safetensors'
    weights.rename(folder / 'pytorch_model.bin')
    refused(folder, r'a contains no model.safetensors, only pytorch_model.bin, .*: convert it to safetensors with')
    (folder / 'pytorch_model.bin').rename(weights)
    edit(folder / 'adapter_config.json', base_model_name_or_path='org/base')
    refused(folder, 'a is a LoRA adapter of org/base, not a whole model: import that model')
    (folder / 'adapter_config.json').unlink()
    (folder / 'tokenizer_config.json').rename(folder / 'kept.json')
    refused(folder, 'a has no tokenizer_config.json')
    (folder / 'kept.json').rename(folder / 'tokenizer_config.json')
    named = [dict(name='rag', template='x'), dict(name='tool_use', template='y')]
    edit(folder / 'tokenizer_config.json', chat_template=named)
    refused(folder, r"no chat template named 'default', only rag, tool_use")
    assert imported(folder, template='chatml')
    (folder / 'tokenizer.json').unlink()
    (folder / 'vocab.json').write_text('{}')
    with pytest.raises(UserError, match=r'neither tokenizer.json nor tokenizer.model: convert vocab.json'):
        imported(folder)


def rewritten(path: Path, change) -> None:
    """Change the header of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + length])
    new = json.dumps(change(header) or header).encode()
    path.write_bytes(len(new).to_bytes(8, 'little') + new + data[8 + length :])


def test_hostile_weights(tmp_path):
    folder = source(tmp_path / 'a')
    path, good = folder / 'model.safetensors', (folder / 'model.safetensors').read_bytes()
    names = list(read_header(path))

    def overlap(header):
        header[names[1]]['data_offsets'] = header[names[0]]['data_offsets']
        header[names[1]]['shape'] = header[names[0]]['shape']

    changes = {
        'negative offsets': lambda header: header[names[0]].update(data_offsets=[-8, 0]),
        'overlapping offsets': overlap,
        'a list': lambda header: [header],
        'a number for a tensor': lambda header: header.update({names[0]: 3}),
        'text for offsets': lambda header: header[names[0]].update(data_offsets=['0', '4']),
        'a nested shape': lambda header: header[names[0]].update(shape=[[1]]),
        'a huge shape': lambda header: header[names[0]].update(shape=[10**30]),
    }
    for change in changes.values():
        path.write_bytes(good)
        rewritten(path, change)
        refused(folder, 'model.safetensors is damaged or cut short')
    nested = b'[' * 200_000
    path.write_bytes(len(nested).to_bytes(8, 'little') + nested)
    refused(folder, 'model.safetensors is damaged or cut short')
    path.write_bytes(good[:-4] + np.float32('nan').tobytes())
    refused(folder, 'contains NaN or infinite numbers')
    path.write_bytes(good)
    os.mkfifo(folder / 'pipe')
    for file in ('../a/model.safetensors', str(path), 'pipe'):
        index = dict(weight_map=dict.fromkeys(names, file))
        (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
        path.rename(folder / 'elsewhere')
        refused(folder, 'which is not a file in the folder')
        (folder / 'elsewhere').rename(path)


@pytest.mark.parametrize(
    'changes',
    [
        dict(hidden_size=10**400), dict(rope_theta=10**400), dict(vocab_size=1e999), dict(architectures='LlamaFor'),
        dict(architectures=[3]), dict(rope_scaling=['yarn']), dict(num_hidden_layers={'a': 1}), dict(model_type=['a']),
    ],
)  # fmt: skip
def test_hostile_configs(changes, tmp_path):
    folder = source(tmp_path / 'a')
    edit(folder / 'config.json', **changes)
    refused(folder, r'config\.json')


def test_sampling_settings_survive(tmp_path):
    folder = source(tmp_path / 'a')
    theirs = dict(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, do_sample=True)
    (folder / 'generation_config.json').write_text(json.dumps(theirs | dict(eos_token_id=[2, 0], pad_token_id=0)))
    export_model(imported(folder).path, tmp_path / 'out', step=None, dtype='float32')
    kept = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
    assert kept == theirs | dict(eos_token_id=[2, 0], pad_token_id=0)
    (folder / 'generation_config.json').unlink()
    export_model(imported(folder).path, tmp_path / 'plain', step=None, dtype='float32')
    kept = json.loads((tmp_path / 'plain' / 'generation_config.json').read_text())
    assert kept == dict(do_sample=True, temperature=1.0, top_p=1.0, eos_token_id=2, pad_token_id=0)
