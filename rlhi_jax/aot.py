"""Compile the train, score and sample programs for a TPU topology, and report the memory that each chip needs.

    python -m rlhi_jax.aot --config=configs/NAME.py --topology=v5p:2x2x4 [--model=CONFIG.json]

This needs libtpu (`pip install -e '.[aot]'`) but no TPU. To plan for a model that is not on this machine, set `--model`
to its Hugging Face config.json.

The output is one JSON object for each program in `--programs`. Each object contains the HBM per chip, the FLOPs in
closed form, the bytes that each chip sends to other chips, and the compile time in seconds. If a program does not fit
in memory, the exit status is 1.

With `--sweep`, the train step is compiled for every mesh and remat policy instead, and the best combination that fits
is printed. The best combination has the fewest FLOPs; ties are broken by the fewest bytes sent.

The FLOPs of train and score assume that every row, a packed training sequence, is full. A full row has
`config.rows.pairs` interaction trees and `config.rows.scored` reply tokens in total. Each tree has one prefix (the
prompt) and two replies.
"""

from absl import flags

from rlhi_jax.cli.program import define_config_flag, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_string('topology', None, 'TPU topology, such as v5p:2x2x4.')
    flags.DEFINE_string('model', None, 'Hugging Face config.json of the model; the default is config.model.path.')
    flags.DEFINE_string('programs', 'train,score,sample', 'Programs to compile, separated by commas.')
    flags.DEFINE_bool('sweep', False, 'Compile the train step for every mesh and remat policy.')
    start()

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.config import require
from rlhi_jax.config.checks import check_config
from rlhi_jax.conversion.hf import spec_from_hf
from rlhi_jax.cost.collectives import collective_bytes
from rlhi_jax.cost.flops import Work, forward_flops, shared_prefix, train_flops
from rlhi_jax.data.rows import capacities
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import read_json
from rlhi_jax.io.progress import Progress
from rlhi_jax.models import attention_tpu
from rlhi_jax.models.checkpoints import abstract_with_shardings, open_model
from rlhi_jax.models.decoder import REMAT_POLICIES, Decoder
from rlhi_jax.models.lora import lora_of
from rlhi_jax.models.parameters import abstract_params, check_fit, split_params
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.sampling.sampler import STEPS, cache_sizes, empty_slots, jit_decode, slots_layout
from rlhi_jax.sampling.settings import sampling
from rlhi_jax.scoring.rows import jit_score
from rlhi_jax.training.model import with_adapters
from rlhi_jax.training.rows import abstract_batch
from rlhi_jax.training.step import abstract_state, jit_train_step, make_optimizer

GIB = 2**30
_TOO_LARGE = re.compile(r'Used [\d.]+\S? of [\d.]+\S? hbm|memory required .*? exceeds available HBM \([^)]*\)')
Report = dict[str, Any]


def topology_devices(name: str) -> list[jax.Device]:
    """Return the devices of a TPU topology such as v5p:2x2x4, for compilation only.

    Raises:
      UserError: libtpu is missing or does not know the topology.
    """
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # else libtpu asks the cloud which TPU this machine has
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # we only compile, so several processes may load it
    if not find_spec('libtpu'):
        raise UserError("--topology needs libtpu: run `pip install -e '.[aot]'`")
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=name).devices
    except Exception as error:  # libtpu raises exceptions of unrelated types
        raise UserError(
            f'cannot compile for --topology={name} ({one_line(error)[:300]}): use a topology such as v5e:16x16, '
            'v5p:2x2x4 or v6e:4x4'
        ) from None


def model_spec(config: ConfigDict, file: str | None) -> ModelSpec:
    """Return the spec of the model to plan for, with the head that the objective trains.

    Args:
      config: provides the objective, and the model folder if `file` is not given.
      file: a Hugging Face config.json to read instead of the model folder, or None.
    """
    if file:
        spec = spec_from_hf(
            read_json(Path(file), 'use the config.json of a Hugging Face model', fields=('model_type',))
        )
    else:
        require(config, 'model.path')
        spec = open_model(config.model.path).spec
    return dataclasses.replace(spec, head=OBJECTIVES[config.objective].head)


def _row_decoder(config: ConfigDict, spec: ModelSpec, mesh: Mesh) -> tuple[Decoder, int]:
    """Return the decoder of the train and score programs, and the number of rows that it processes in one call.

    Raises:
      UserError: the model or the rows cannot be split evenly over the mesh.
    """
    rows = config.train.batch_rows // config.train.accumulate
    check_fit(mesh, spec, rows, 'config.train.batch_rows / config.train.accumulate')
    return Decoder(spec, jnp.dtype(config.model.dtype), remat=config.model.remat), rows


def _train(config: ConfigDict, spec: ModelSpec, mesh: Mesh) -> jax.stages.Lowered:
    decoder = with_adapters(_row_decoder(config, spec, mesh)[0], config)
    state = abstract_state(decoder, make_optimizer(config.optimizer, 1000), mesh)
    _, frozen = split_params(decoder, abstract_params(decoder, mesh))
    step = jit_train_step(config, decoder, state, mesh, 1000)
    return step.lower(state, abstract_batch(config, mesh, config.train.batch_rows), frozen)


def _score(config: ConfigDict, spec: ModelSpec, mesh: Mesh) -> jax.stages.Lowered:
    decoder, rows = _row_decoder(config, spec, mesh)
    return jit_score(config, decoder, mesh).lower(abstract_params(decoder, mesh), abstract_batch(config, mesh, rows))


def _sample(config: ConfigDict, spec: ModelSpec, mesh: Mesh) -> jax.stages.Lowered:
    decoder, how = Decoder(spec, jnp.dtype(config.model.dtype), unrolled=True), sampling(config)
    check_fit(mesh, spec, how.slots, 'config.sampler.slots')
    shapes = jax.eval_shape(lambda: empty_slots(decoder, how, cache_sizes(how)[-1]))
    layout = slots_layout(mesh, how)
    cache = abstract_with_shardings(shapes.cache, jax.tree.map(lambda _: layout.cache, shapes.cache))
    heads = abstract_with_shardings(shapes.replace(cache=None), layout.replace(cache=None))
    return jit_decode(decoder, how, mesh).lower(abstract_params(decoder, mesh), heads.replace(cache=cache))


PROGRAMS: dict[str, Callable[[ConfigDict, ModelSpec, Mesh], jax.stages.Lowered]] = {
    'train': _train,
    'score': _score,
    'sample': _sample,
}


def row_work(config: ConfigDict, spec: ModelSpec) -> Work:
    """Return the amount of work in a full row: its tokens, scored tokens and attended (query, key) pairs.

    A full row has `config.rows.pairs` interaction trees. Each tree has one prefix (the prompt) and two replies. All
    replies together have `config.rows.scored` tokens.

    Raises:
      UserError: the replies leave no tokens for a prefix.
    """
    limits = capacities(config)
    reply = limits.scored // limits.replies
    prefix = limits.tokens // limits.pairs - 2 * reply
    if prefix < 1:
        raise UserError(
            f'config.rows.scored is {limits.scored}, but each row has {limits.tokens} tokens, which leaves none for '
            f'prompts: pass --config.rows.scored={limits.tokens // 2}'
        )
    tree = shared_prefix(prefix, reply, reply, window=spec.local.window if spec.local else None)
    return Work(*(limits.pairs * n for n in dataclasses.astuple(tree)))


def flops(program: str, config: ConfigDict, spec: ModelSpec) -> Report:
    """Return the TFLOPs of one run of a program, summed over all chips and split into parts such as body and head.

    For train, the result also contains the TFLOPs per preference pair. If the objective uses a reference model, this
    number includes the forward pass of that model.
    """
    if program == 'sample':  # one decode call, which reads the slots' whole caches
        how = sampling(config)
        tokens = how.slots * STEPS
        attended = tokens * (how.prompt_tokens + how.new_tokens)
        work = Work(tokens, tokens, attended, attended)
        return {name: value / 1e12 for name, value in forward_flops(spec, work).items()}
    work = row_work(config, spec)
    forward = {name: value * config.train.batch_rows for name, value in forward_flops(spec, work).items()}
    if program == 'score':
        return {name: value / 1e12 / config.train.accumulate for name, value in forward.items()}
    how = dict(attention_products=attention_tpu.PRODUCTS, lora=lora_of(config.lora))
    train = train_flops(spec, work, config.model.remat, **how)
    train = {name: value * config.train.batch_rows for name, value in train.items()}
    reference = sum(forward.values()) if OBJECTIVES[config.objective].uses_reference else 0
    pairs = config.train.batch_rows * config.rows.pairs
    total = {'a_pair': (sum(train.values()) + reference) / pairs, 'a_pair_without_repeats': 0.0}
    total['a_pair_without_repeats'] = total['a_pair'] - train['repeated'] / pairs
    return {name: value / 1e12 for name, value in (train | {'reference': reference} | total).items()}


def compile_report(program: str, config: ConfigDict, spec: ModelSpec, mesh: Mesh) -> Report:
    """Compile a program, and return its FLOPs, HBM per chip, bytes sent and compile time.

    If the program does not fit in memory, `fits` is False in the report, and `why` quotes the compiler's error.
    """
    start = time.monotonic()
    report: Report = dict(program=program, mesh=dict(mesh.shape), remat=config.model.remat, chips=mesh.size)
    report |= dict(tflops=flops(program, config, spec))
    with on_mesh(mesh):
        lowered = PROGRAMS[program](config, spec, mesh)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if (needed := _TOO_LARGE.search(str(error))) is None:
                raise
            return report | dict(fits=False, why=needed[0], compile_seconds=time.monotonic() - start)
    memory = compiled.memory_analysis()
    parts = dict(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,  # without outputs that reuse argument memory
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )
    sent = collective_bytes(compiled.as_text())
    return report | dict(
        fits=True,
        hbm_gib={name: size / GIB for name, size in parts.items()} | {'total': sum(parts.values()) / GIB},
        collective_gib={kind: size / GIB for kind, size in sent.items()},
        compile_seconds=time.monotonic() - start,
    )


def sweep(config: ConfigDict, spec: ModelSpec, devices: list[jax.Device]) -> Iterator[Report]:
    """Yield a report on the train step for every remat policy on every mesh that splits the model and batch evenly."""
    tries = []
    for tensor in (n for n in range(1, spec.num_kv_heads + 1) if len(devices) % n == 0):
        for fsdp in (n for n in range(1, len(devices) // tensor + 1) if len(devices) // tensor % n == 0):
            sizes = dict(data=len(devices) // tensor // fsdp, fsdp=fsdp, tensor=tensor)
            mesh = make_mesh(sizes, devices)
            try:
                check_fit(mesh, spec, config.train.batch_rows // config.train.accumulate)
            except UserError:
                continue
            tries += [(mesh, remat) for remat in REMAT_POLICIES]
    if not tries:
        rows = config.train.batch_rows // config.train.accumulate
        raise UserError(
            f'config.train.batch_rows / config.train.accumulate is {rows}, which no mesh of {len(devices)} chips can '
            f'split evenly: set config.train.batch_rows to a multiple of {len(devices) * config.train.accumulate}'
        )
    with Progress('sweep', len(tries), unit='compiles') as progress:
        for done, (mesh, remat) in enumerate(tries, start=1):
            changed = config.copy_and_resolve_references()
            changed.model.remat = remat
            yield compile_report('train', changed, spec, mesh)
            progress.update(done)


def best(reports: Iterable[Report]) -> Report | None:
    """Return the best report on a program that fits in memory, or None if no program fits.

    The best report has the fewest FLOPs per pair; ties are broken by the fewest bytes sent.
    """
    fitting = [report for report in reports if report['fits']]
    return min(fitting, key=lambda r: (r['tflops']['a_pair'], sum(r['collective_gib'].values())), default=None)


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    config = check_config(flags.FLAGS.config)
    require_flags('topology')
    programs = flags.FLAGS.programs.split(',')
    if unknown := set(programs) - PROGRAMS.keys():
        raise UserError(f'--programs contains {min(unknown)!r}: choose from {", ".join(PROGRAMS)}')
    spec = model_spec(config, flags.FLAGS.model)
    devices = topology_devices(flags.FLAGS.topology)
    common = dict(topology=flags.FLAGS.topology)
    if flags.FLAGS.sweep:
        reports = []
        for report in sweep(config, spec, devices):
            print(json.dumps(common | report), flush=True)
            reports.append(report)
        if (chosen := best(reports)) is None:
            sys.exit(
                f'error: with --topology={flags.FLAGS.topology}, the train step does not fit in memory on any mesh: '
                'choose a --topology with more chips'
            )
        summary = f'{chosen["mesh"]}, {chosen["remat"]}, {chosen["hbm_gib"]["total"]:.1f} GiB'
        print(f'best that fits: {summary}', file=sys.stderr)
        return
    mesh = make_mesh(config.mesh.to_dict(), devices)
    fits = True
    for program in programs:
        report = compile_report(program, config, spec, mesh)
        print(json.dumps(common | report), flush=True)
        if not report['fits']:
            fits = False
            print(
                f'error: {program} does not fit on a chip of {flags.FLAGS.topology}: {report["why"]}', file=sys.stderr
            )
    if not fits:
        sys.exit(1)


if __name__ == '__main__':
    run(main)
