"""Checks that rows and prompts fit in the policy's context, and that the machine's disk and memory are large enough."""

import shutil
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.checks.cost import CHARACTERS
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.sample import Sample
from rlhi_jax.config.loop_paths import method_of
from rlhi_jax.cost.memory import disk_bytes, num_parameters, training_bytes
from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.lora import lora_of
from rlhi_jax.training.model import check_pad_token

_GB = 1e9


def check_machine(config: ConfigDict, workdir: Path, sample: Sample | None, findings: Findings) -> None:
    """Check that the policy and the machine suit the training runs, and add the results to the findings."""
    try:
        model = open_model(config.model.path)
        if 'reward' in method_of(config).trains:
            check_pad_token(model)
    except UserError as error:
        findings.stop(str(error))
        return
    spec, lora, trains = model.spec, lora_of(config.lora), method_of(config).trains
    findings.fact(f'Policy: {config.model.path}, {num_parameters(spec) / 1e6:,.0f} million parameters.')
    _check_positions(config, spec.max_positions, findings)
    if sample and sample.conversations:
        long = sum(
            sum(len(message['content']) for message in each['messages']) > CHARACTERS * config.rows.tokens
            for each in sample.conversations
        )
        if long > len(sample.conversations) / 4:
            findings.warn(
                f'{long / len(sample.conversations):.0%} of the conversations are longer than a row '
                f'(config.rows.tokens={config.rows.tokens}) and would be shortened: raise config.rows.tokens'
            )
    disk = len(trains) * disk_bytes(spec, lora, keep=config.checkpoint.keep)
    free = shutil.disk_usage(_existing(workdir)).free
    findings.fact(f'Disk: {disk / _GB:,.1f} GB for {len(trains)} training runs; {free / _GB:,.1f} GB free.')
    if disk > free:
        findings.stop(
            f'--workdir={workdir} has {free / _GB:,.1f} GB free, but the training runs need {disk / _GB:,.1f} GB: free '
            'some space'
        )
    needed, total = training_bytes(spec, lora), _memory()
    findings.fact(
        f'Memory: {needed / _GB:,.1f} GB for parameters and optimizer state, and more for activations; this machine '
        f'has {total / _GB:,.1f} GB.'
    )
    if total and needed > total:
        findings.warn(
            f"training needs {needed / _GB:,.1f} GB, more than this machine's {total / _GB:,.1f} GB of memory: "
            'train only adapters (set config.lora.rank)'
        )


def _check_positions(config: ConfigDict, most: int, findings: Findings) -> None:
    asked = config.sampler.prompt_tokens + config.sampler.new_tokens
    for key, tokens in (('rows.tokens', config.rows.tokens), ('sampler.prompt_tokens + sampler.new_tokens', asked)):
        if tokens > most:
            findings.warn(
                f'config.{key} is {tokens}, but {config.model.path} has a context of {most} tokens: lower config.{key} '
                f'to {most}'
            )


def _existing(path: Path) -> Path:
    """Return the path if it exists, or else the nearest parent folder that exists."""
    return path if path.exists() else _existing(path.parent)


def _memory() -> int:
    """Return the size of this machine's memory in bytes, or 0 if the size is unknown."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith('MemTotal')).split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
