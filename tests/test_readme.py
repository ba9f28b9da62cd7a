"""The README.md of an exported model: its code runs as it stands with transformers, and its metadata is valid."""

import os
import re

os.environ['HF_HUB_OFFLINE'] = '1'

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
import tiny_config  # noqa: E402
from conversion_models import tiny_spec  # noqa: E402
from import_sources import imported, source  # noqa: E402

from rlhi_jax.config import base_config  # noqa: E402
from rlhi_jax.conversion.readme import readme  # noqa: E402
from rlhi_jax.convert import export_model  # noqa: E402
from rlhi_jax.data.rows import Capacities  # noqa: E402
from rlhi_jax.models.checkpoints import ModelFolder, describe_model, open_model  # noqa: E402
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer  # noqa: E402
from rlhi_jax.train import train  # noqa: E402

PERSONA = 'Wants examples from the kitchen.'


def run_code(folder, monkeypatch, capsys) -> tuple[dict, str]:
    """Run the Python code of a folder's README; return the names that it defines and what it prints."""
    (code,) = re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(encoding='utf-8'), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(folder)
    capsys.readouterr()
    names: dict = {}
    exec(code, names)
    return names, capsys.readouterr().out.rstrip('\n')


def exported(tmp_path, family: str, head: str):
    model = imported(source(tmp_path / 'a', family, head))
    export_model(model.path, tmp_path / 'out', step=None, dtype='float32')
    return model, tmp_path / 'out'


@pytest.mark.parametrize('family', ['chatml', 'llama3'])
def test_code_for_a_policy(family, tmp_path, monkeypatch, capsys):
    torch, _ = pytest.importorskip('torch'), pytest.importorskip('transformers')
    _, folder = exported(tmp_path, family, 'lm')
    torch.manual_seed(0)
    names, printed = run_code(folder, monkeypatch, capsys)
    prompt = names['tokenizer'].decode(names['inputs']['input_ids'][0])
    assert PERSONA in prompt and 'Why is the sky blue?' in prompt
    whole = names['tokenizer'].decode(names['output'][0], skip_special_tokens=True)
    assert len(printed) > 10 and whole.endswith(printed) and 'Why is the sky blue?' not in printed


@pytest.mark.parametrize('family', ['chatml', 'llama3'])
def test_code_for_a_reward_model(family, tmp_path, monkeypatch, capsys):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    model, folder = exported(tmp_path, family, 'reward')
    names, printed = run_code(folder, monkeypatch, capsys)
    c = base_config()
    c.model.dtype, c.model.logprob_chunk, c.compilation_cache = 'float32', 64, ''
    scorer = CandidateScorer(c, str(model.path), Capacities(512, 256, 4), sees_persona=True)
    request, reply = names['messages']
    (ours,) = scorer([Candidates('a', [request], PERSONA, [reply['content']])])['a']
    np.testing.assert_allclose(float(printed), ours, atol=2e-4)


def test_an_exported_folder_can_be_imported_again(tmp_path):
    model, folder = exported(tmp_path, 'chatml', 'lm')
    again = imported(folder)
    assert (again.weights, again.spec, again.tokens) == (model.weights, model.spec, model.tokens)
    assert not list(again.path.rglob('README.md'))
    export_model(model.path, tmp_path / 'twice', step=None, dtype='float32')
    for path in folder.iterdir():
        assert (tmp_path / 'twice' / path.name).read_bytes() == path.read_bytes()


def model_from(source: str, head: str = 'lm') -> ModelFolder:
    return ModelFolder(None, None, tiny_spec(head=head), 'w', {}, source)


SOURCES = {
    'hf://own/a.model@0123abc': ('own/a.model', 'hf://own/a.model@0123abc', 'none (converted by rlhi_jax'),
    'sft on hf://own/a@v1': ('own/a', 'hf://own/a@v1', 'sft (trained by rlhi_jax'),
    'dpo on sft on gguf:a on b.gguf': (None, 'gguf:a on b.gguf', 'sft, then dpo (trained by rlhi_jax'),
    'dpo on hf:`\n---\nlicense: mit': (None, 'hf:---license: mit', 'dpo (trained by rlhi_jax'),
}


@pytest.mark.parametrize('source', SOURCES)
def test_metadata_and_origin(source):
    yaml = pytest.importorskip('yaml')
    hub_name, base, trained = SOURCES[source]
    for head, task, kind in (('lm', 'text-generation', 'policy'), ('reward', 'text-classification', 'reward model')):
        text = readme(model_from(source, head), dtype='bfloat16')
        empty, metadata, body = re.split(r'^---\n', text, maxsplit=2, flags=re.MULTILINE)
        expected = dict(library_name='transformers', pipeline_tag=task) | (
            dict(base_model=hub_name) if hub_name else {}
        )
        assert empty == '' and yaml.safe_load(metadata) == expected
        assert f'# A persona-conditioned {kind}\n' in body and f'- Base model: `{base}`\n' in body
        assert (
            f'- Objective: {trained}, ' in body and '- Weights: bfloat16\n' in body and 'GPU' in body and 'CPU' in body
        )
        assert 'WORKDIR/personas/users.jsonl' in body and 'python -m data_pipelines.persona_store show' in body
        assert max(map(len, text.splitlines())) <= 120


def test_a_run_names_its_objective_and_its_base_model(tmp_path):
    flags = dict(flag.removeprefix('--').split('=', 1) for flag in tiny.prepare(tmp_path, pairs=8))
    folder = tmp_path / 'model'
    first = open_model(folder)
    describe_model(folder, first.spec, weights=first.weights, tokens=first.tokens, source='hf://own/base@abc')
    config = tiny_config.get_config('reward')
    for name in ('shards', 'rows'):
        config.data[name] = flags[f'config.data.{name}']
    config.model.path, config.train.max_steps = str(folder), 1
    train(config, tmp_path / 'run')
    export_model(tmp_path / 'run', tmp_path / 'out', step=None, dtype='float32')
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert 'base_model: own/base\n' in text and '- Objective: reward (' in text
    assert str(tmp_path) not in text and not [user for user in range(4) if f'user{user} likes' in text]
