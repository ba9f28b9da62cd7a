"""Speed of the sampler against `generate` of transformers, on this machine: the same model, prompts and lengths.

python tests/benchmarks/sampler.py --model=runs/smollm2 [--rounds=3]

16 prompts of 300 tokens, 4 samples of 96 tokens each, in float32: transformers with PyTorch's fused attention, a KV
cache and all 64 sequences in one batch, and ours in 64 slots. Each side is a process that has loaded its model and
compiled its steps. The two take turns, so that other work on the machine slows both; the ratio of their processor times
depends on it even less. Writes `results/sampler.json`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 16, 4, 300, 96
SIDES = ('ours', 'transformers')


def prompts(vocabulary: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(10, vocabulary, (PROMPTS, PROMPT_TOKENS)).tolist()


def ours(folder: str) -> Callable[[int], int]:
    """Return a function that samples from a model folder and returns the number of tokens drawn."""
    import dataclasses

    from rlhi_jax.models.checkpoints import open_model
    from rlhi_jax.parallel.sharding import make_mesh
    from rlhi_jax.sampling.sampler import Request, Sampler
    from rlhi_jax.sampling.settings import Sampling

    model = dataclasses.replace(open_model(folder), tokens=dict(eos_token_id=[]))  # no reply ends early
    settings = Sampling(PROMPTS * SAMPLES, PROMPT_TOKENS, NEW_TOKENS)
    sampler = Sampler(model, settings, make_mesh(dict(data=1, fsdp=1, tensor=1)))
    asked = prompts(model.spec.vocab_size)

    def draw(count: int) -> int:
        return sum(len(s.tokens) for s in sampler.sample(Request(tuple(p), SAMPLES) for p in asked[:count]))

    return draw


def transformers(folder: str) -> Callable[[int], int]:
    """Return the same function for an exported folder and transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='sdpa').eval()
    asked = torch.tensor(prompts(model.config.vocab_size))
    options = dict(do_sample=True, top_k=0, num_return_sequences=SAMPLES, pad_token_id=2)
    options |= dict(min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)

    def draw(count: int) -> int:
        ids = asked[:count]
        with torch.no_grad():
            rows = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return len(rows) * (rows.shape[1] - PROMPT_TOKENS)

    return draw


def serve(side: str, folder: str) -> None:
    """Draw from as many prompts as each line of standard input says; print the time that it took."""
    draw = dict(ours=ours, transformers=transformers)[side](folder)
    for line in sys.stdin:
        start, cpu = time.monotonic(), time.process_time()
        tokens = draw(int(line))
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(dict(tokens=tokens, seconds=seconds, cpu_seconds=cpu, peak_gib=peak)), flush=True)


class Side:
    """A process that draws when it is asked to."""

    def __init__(self, side: str, folder: str):
        command = [sys.executable, __file__, f'--side={side}', f'--model={folder}']
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def draw(self, count: int) -> dict:
        self._process.stdin.write(f'{count}\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(model: str, rounds: int) -> dict:
    from rlhi_jax.convert import export_model

    with tempfile.TemporaryDirectory() as folder:
        export_model(Path(model), Path(folder) / 'exported', step=None, dtype='float32')
        sides = dict(ours=Side('ours', model), transformers=Side('transformers', f'{folder}/exported'))
        for side in sides.values():
            side.draw(1)  # compiles
        runs: dict[str, list[dict]] = {name: [] for name in SIDES}
        for number in range(rounds):
            for name in SIDES[:: 1 if number % 2 == 0 else -1]:
                runs[name].append(sides[name].draw(PROMPTS))
                print(name, runs[name][-1], flush=True)
        for side in sides.values():
            side.close()
    return summary(runs)


def summary(runs: dict[str, list[dict]]) -> dict:
    """Return the speeds of both sides, and how many times as fast ours is in each round."""

    def ratios(unit: str) -> list[float]:
        return [b[unit] / a[unit] for a, b in zip(runs['ours'], runs['transformers'], strict=True)]

    speeds = {name: [run['tokens'] / run['seconds'] for run in runs[name]] for name in SIDES}
    return dict(
        setting=dict(prompts=PROMPTS, samples=SAMPLES, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS),
        tokens_a_second={name: statistics.median(speeds[name]) for name in SIDES},
        peak_gib={name: max(run['peak_gib'] for run in runs[name]) for name in SIDES},
        ratios=ratios('seconds'),
        ratio=statistics.median(ratios('seconds')),
        ratio_of_processor_time=statistics.median(ratios('cpu_seconds')),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='runs/smollm2', help='model folder of SmolLM2-135M-Instruct')
    parser.add_argument('--rounds', type=int, default=3, help='how often each side draws')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments.side, arguments.model)
        return
    from rlhi_jax.io.files import write_json

    result = measure(arguments.model, arguments.rounds)
    write_json(Path(__file__).parent / 'results' / 'sampler.json', result)
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
