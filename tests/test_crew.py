"""Several processes against one: sampled replies, and which models and results they refuse or return."""

import json
import subprocess
import sys

import jax
import pytest
import tiny

from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.parallel import crew
from rlhi_jax.parallel.sharding import local_mesh


@crew.shared
def doubled(config, arguments, items):
    for item in items:
        yield item * arguments['by']


def test_one_process_does_all_the_work():
    assert list(crew.share(doubled, base_config(), dict(by=2), [1, 2, 3])) == [2, 4, 6]


class Store:
    """JAX's key-value store, as one process sees it."""

    def __init__(self):
        self.entries: dict[str, str] = {}

    def key_value_set(self, key: str, value: str):
        assert len(value) <= crew._PART
        self.entries[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        if key not in self.entries:
            raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: not there')
        return self.entries[key]

    def key_value_delete(self, key: str):
        self.entries = {name: value for name, value in self.entries.items() if not f'{name}/'.startswith(f'{key}/')}


def test_long_messages_go_through_the_store_in_parts(monkeypatch):
    monkeypatch.setattr(crew.global_state, 'client', store := Store())
    monkeypatch.setattr(crew, '_PART', 100)
    message = dict(items=['naïve \ud83d\ude42' * 40, None, 0.1, {'a': []}])
    crew._put('7', message)
    assert len(store.entries) > 4
    assert crew._get('7', seconds=None) == json.loads(json.dumps(message))
    assert crew._get('70', seconds=0) is None and crew._get('70', seconds=1) is None
    crew._delete('7')
    assert store.entries == {}


def test_a_model_split_over_several_processes_is_refused_by_name(monkeypatch):
    everywhere = dict(local_mesh(dict(data=2, fsdp=-1, tensor=2)).shape)
    assert everywhere == dict(data=2, fsdp=2, tensor=2)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:4])
    assert dict(local_mesh(dict(data=4, fsdp=-1, tensor=2)).shape) == dict(data=1, fsdp=2, tensor=2)
    assert dict(local_mesh(dict(data=1, fsdp=1, tensor=-1)).shape) == dict(data=1, fsdp=1, tensor=4)
    with pytest.raises(UserError, match='config.mesh.tensor is 8.*its own 4 devices: set .*tensor to a divisor of 4'):
        local_mesh(dict(data=1, fsdp=1, tensor=8))


def test_two_processes_sample_as_one(tmp_path):
    """Five prompts with different numbers of samples: the files are the same, byte for byte."""
    model, prompts = tiny.write_model(tmp_path / 'model'), tmp_path / 'prompts.jsonl'
    records = [dict(messages=[dict(role='user', content='Hi. ' * (n + 1))], samples=n % 3 + 1) for n in range(5)]
    prompts.write_text('\n'.join(map(json.dumps, records)))
    settings = {'model.path': model, 'model.dtype': 'float32', 'sampler.slots': 4, 'sampler.prompt_tokens': 64}
    settings |= {'sampler.new_tokens': 30, 'sampler.logprobs': True, 'sampler.repetition_penalty': 1.1}
    flags = [f'--config={tiny.CONFIG}', f'--prompts={prompts}', *(f'--config.{k}={v}' for k, v in settings.items())]
    tiny.run_program('rlhi_jax.generate', *flags, f'--to={tmp_path / "one"}')
    command = [sys.executable, '-m', 'rlhi_jax.generate', *flags, f'--to={tmp_path / "two"}']
    launcher = [sys.executable, 'launch/local.py', '--processes=2', '--']
    done = subprocess.run([*launcher, *command], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count('wrote') == 1
    assert len((tmp_path / 'one').read_text().splitlines()) == 9
    assert (tmp_path / 'two').read_bytes() == (tmp_path / 'one').read_bytes()


def test_two_processes_report_an_error_once(tmp_path):
    model = tiny.write_model(tmp_path / 'model')
    (tmp_path / 'prompts.jsonl').write_text(json.dumps(dict(messages=[dict(role='user', content='x' * 300)])))
    flags = [f'--config={tiny.CONFIG}', f'--prompts={tmp_path / "prompts.jsonl"}', f'--config.model.path={model}']
    flags += ['--config.sampler.prompt_tokens=64', '--config.sampler.new_tokens=8', '--config.sampler.slots=4']
    command = [sys.executable, 'launch/local.py', '--processes=2', '--', sys.executable, '-m', 'rlhi_jax.generate']
    done = subprocess.run([*command, *flags], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count('error: ') == 1 and 'config.sampler.prompt_tokens' in done.stderr
