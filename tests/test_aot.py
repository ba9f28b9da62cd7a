"""Compiling for TPUs that this machine lacks: kernels lower, programs are measured, those too large are reported."""

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlhi_jax.aot import best, model_spec, sweep, topology_devices
from rlhi_jax.config import base_config
from rlhi_jax.models import attention_tpu
from rlhi_jax.models.tree_blocks import Logits, Mask
from rlhi_jax.parallel.sharding import make_mesh

ROOT = Path(__file__).parents[1]
pytest.importorskip('libtpu')

MODEL = dict(
    model_type='llama',
    architectures=['LlamaForCausalLM'],
    vocab_size=2048,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
)


@pytest.mark.parametrize('window', [False, True])
@pytest.mark.parametrize('length', [384, 32768])
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_the_kernels_lower(topology, length, window):
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), topology_devices(topology)[:1])
    one = jax.sharding.NamedSharding(mesh, jax.P())

    def shape(*dims, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=one)

    q, kv = shape(2, length, 4, 128), shape(2, length, 2, 128)
    per_token, per_query = shape(2, length, dtype=jnp.int32), shape(2, 4, length, dtype=jnp.float32)
    mask = Mask(*[per_token] * (3 if window else 1))
    logits = Logits(128**-0.5, 50.0 if window else None)
    forward, backward = (functools.partial(f, logits) for f in (attention_tpu.forward, attention_tpu.backward))
    with jax.set_mesh(mesh):
        forward = jax.jit(forward).lower(q, kv, kv, mask).compile().as_text()
        backward = jax.jit(backward).lower(q, kv, kv, mask, per_query, per_query, q).compile().as_text()
    assert forward.count('tpu_custom_call') >= 1 and backward.count('tpu_custom_call') >= 2


GEMMA = MODEL | dict(
    model_type='gemma3_text',
    architectures=['Gemma3ForCausalLM'],
    num_hidden_layers=6,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=512,
    rope_theta=1e6,
    final_logit_softcapping=30.0,
)


def run(tmp_path, *flags: str, model=MODEL) -> subprocess.CompletedProcess:
    (tmp_path / 'config.json').write_text(json.dumps(model))
    (tmp_path / 'plan.py').write_text(
        'from rlhi_jax.config import base_config\n'
        'def get_config():\n'
        '    c = base_config()\n'
        '    c.rows.tokens, c.rows.scored, c.rows.pairs, c.train.batch_rows = 1024, 512, 2, 4\n'
        '    c.sampler.slots, c.sampler.prompt_tokens, c.sampler.new_tokens = 4, 64, 64\n'
        '    return c\n'
    )
    command = [sys.executable, '-m', 'rlhi_jax.aot', f'--config={tmp_path / "plan.py"}', '--topology=v5e:2x2']
    command += [f'--model={tmp_path / "config.json"}', *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_programs_are_compiled_and_measured(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    reports = {report['program']: report for report in map(json.loads, done.stdout.splitlines())}
    assert reports.keys() == {'train', 'score', 'sample'}
    parameters = 2 * 2048 * 512 + 2 * (4 * 512 * 512 + 3 * 512 * 1024 + 2 * 512) + 512
    # Parameters and two moments in float32, split over four chips; norms and rows take next to nothing.
    assert reports['train']['hbm_gib']['arguments'] == pytest.approx(3 * 4 * parameters / 4 / 2**30, rel=0.02)
    assert reports['score']['hbm_gib']['total'] < reports['train']['hbm_gib']['total']
    assert sum(reports['train']['collective_gib'].values()) > 0


def test_with_adapters_only_they_have_moments(tmp_path):
    done = run(tmp_path, '--programs=train', '--config.lora.rank=8', '--config.lora.base_dtype=bfloat16')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    frozen = 2 * (2 * 2048 * 512 + 2 * (4 * 512 * 512 + 3 * 512 * 1024))
    # The mesh axis fsdp splits only the width: one side of every adapted matrix.
    split, whole = 7 * 512, 4 * 512 + 3 * 1024
    adapters = 3 * 4 * 2 * 8 * (split / 4 + whole)
    assert report['hbm_gib']['arguments'] == pytest.approx((frozen / 4 + adapters) / 2**30, rel=0.03)
    assert report['tflops']['adapters'] == pytest.approx(4 * 3 * 2 * 1024 * 2 * 8 * (split + whole) / 1e12)


def test_programs_of_gemma_are_compiled(tmp_path):
    done = run(tmp_path, model=GEMMA)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 3 and all(report['fits'] for report in reports)


def test_a_program_that_does_not_fit_is_reported(tmp_path):
    done = run(tmp_path, '--programs=train', '--config.train.batch_rows=16384', '--config.model.remat=save_all')
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report['fits'] and 'hbm' in report['why'].lower()
    assert 'train does not fit on a chip of v5e:2x2' in done.stderr


def test_a_sweep_takes_what_fits_with_fewest_flops(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(MODEL))
    config = base_config()
    config.rows.scored, config.rows.pairs, config.train.batch_rows = 512, 2, 4
    spec = model_spec(config, str(tmp_path / 'config.json'))
    reports = list(itertools.islice(sweep(config, spec, topology_devices('v5e:2x2')), 2))
    assert [report['remat'] for report in reports] == ['save_all', 'save_dots'] and all(r['fits'] for r in reports)
    dearer = reports[0] | {'tflops': {'a_pair': 2 * reports[0]['tflops']['a_pair']}}
    assert best([dearer, reports[1]]) is reports[1]
    assert best([dearer, reports[1] | {'fits': False}]) is dearer
    assert best([]) is None


@pytest.mark.parametrize(
    ('flag', 'named'),
    [
        ('--topology=v9z:1x1', '--topology'),
        ('--programs=dance', '--programs'),
        ('--config.rows.scored=1024', 'config.rows.scored'),
    ],
)
def test_wrong_flags_are_refused_by_name(tmp_path, flag, named):
    done = run(tmp_path, flag)
    assert done.returncode == 2 and named in done.stderr
