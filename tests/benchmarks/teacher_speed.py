"""Speed of a teacher on the CPU: a llama.cpp server (`launch/teacher.sh`) beside the sampler, with the same model.

    python tests/benchmarks/teacher_speed.py --url=http://127.0.0.1:8123/v1 --model=runs/teacher

`runs/teacher` is the folder that `rlhi_jax.convert import` makes of the GGUF file that the server serves. The script
also checks the server: it compares the log-probabilities of the server's greedy answers with those that the folder's
model gives the same tokens in float32. Both are timed in turn, three times, and the results state medians and the
machine's load. Writes results/teacher_speed.json.

Dimension key: B batch, T tokens, V vocabulary.
"""

import argparse
import json
import os
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhi_jax.io.files import write_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.decoder import Decoder, output_head
from rlhi_jax.models.parameters import load_params
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.sampling.sampler import Request, Sampler
from rlhi_jax.sampling.settings import Sampling
from rlhi_jax.tokenizers.template import ChatTemplate, Context

PARALLEL, ROUNDS, NEW_TOKENS, PROMPT_TOKENS = (1, 8), 3, 48, 256
MESH = dict(data=1, fsdp=1, tensor=1)
QUESTIONS = ('Explain tides to a child.', 'Write a short poem about bread.', 'List three facts about black holes.',
             'Why study binary search?', 'Summarize the French Revolution.', 'Write an email to a landlord.',
             'How do I sort a list in Python?', 'Plan a week of dinners.')  # fmt: skip


class Server:
    """The server's answers and their lengths in tokens."""

    def __init__(self, url: str):
        self._url = url

    def answer(self, text: str, new_tokens: int, **more: Any) -> dict[str, Any]:
        messages = [dict(role='user', content=text)]
        body = dict(model='teacher', messages=messages, temperature=0, max_tokens=new_tokens, **more)
        request = urllib.request.Request(
            f'{self._url}/chat/completions', json.dumps(body).encode(), {'content-type': 'application/json'}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def speed(self, texts: list[str], new_tokens: int) -> float:
        """Return the tokens per second of prompts (if `new_tokens` is 1) or of answers, all requests at once."""
        start = time.monotonic()
        with ThreadPoolExecutor(len(texts)) as pool:
            usage = [each['usage'] for each in pool.map(lambda text: self.answer(text, new_tokens), texts)]
        counted = 'prompt_tokens' if new_tokens == 1 else 'completion_tokens'
        return sum(each[counted] for each in usage) / (time.monotonic() - start)


class Local:
    """The model in a folder, read by our sampler."""

    def __init__(self, folder: Path, dtype: str):
        self._model, self._dtype = open_model(folder), dtype
        self._template = ChatTemplate.load(self._model.tokenizer_path)

    def tokens(self, text: str) -> tuple[int, ...]:
        roles, context = ('user',), Context()
        ids = self._template.encode(roles, text, context).ids
        return (*ids, *self._template.generation_prompt(roles, context))

    def sampler(self, slots: int, new_tokens: int) -> Sampler:
        settings = Sampling(slots, prompt_tokens=2 * PROMPT_TOKENS, new_tokens=new_tokens, temperature=0)
        return Sampler(self._model, settings, make_mesh(MESH, jax.devices()[:1]), dtype=self._dtype)

    def speed(self, sampler: Sampler, texts: list[str], new_tokens: int) -> float:
        """Return what `Server.speed` returns."""
        requests = [Request(self.tokens(text), name=text) for text in texts]
        start = time.monotonic()
        samples = list(sampler.sample(requests))
        seconds = time.monotonic() - start
        if new_tokens == 1:
            return sum(len(request.prompt) for request in requests) / seconds
        return sum(len(sample.tokens) + sample.finished for sample in samples) / seconds


def long_text(number: int) -> str:
    """Return a prompt of about `PROMPT_TOKENS` tokens that shares no beginning with another number's."""
    words = (f'{(number * 7919 + 31 * i) % 997} apples' for i in range(PROMPT_TOKENS // 5))
    return f'{number}: count the apples. {" ".join(words)}'


def agreement(server: Server, local: Local, folder: Path) -> dict[str, float]:
    """Compare the log-probabilities (nats) of the server's greedy answers with the model's in float32."""
    model, mesh = open_model(folder), make_mesh(MESH, jax.devices()[:1])
    decoder = Decoder(model.spec)
    params = load_params(decoder, model, mesh, seed=0)

    @jax.jit
    def log_probabilities(params, tokens_BT):
        position_BT = jnp.arange(tokens_BT.shape[1])[None]
        hidden_BTD = decoder.apply({'params': params}, tokens_BT, position_BT, tokens_BT.shape[1] - position_BT)
        return jax.nn.log_softmax(output_head(model.spec, params).logits(hidden_BTD))[0]

    differences, gaps = [], []
    for text in QUESTIONS:
        answer = server.answer(text, NEW_TOKENS, logprobs=True, cache_prompt=False)
        prompt, content = local.tokens(text), answer['choices'][0]['logprobs']['content']
        if answer['usage']['prompt_tokens'] != len(prompt):
            raise RuntimeError(f'the server reads {answer["usage"]["prompt_tokens"]} tokens, and we read {len(prompt)}')
        reply = [token['id'] for token in content]
        tokens_BT = np.zeros((1, 128), np.int32)
        tokens_BT[0, : len(prompt) + len(reply)] = [*prompt, *reply]
        ours_TV = np.asarray(log_probabilities(params, tokens_BT))[len(prompt) - 1 :][: len(reply)]
        ours = ours_TV[np.arange(len(reply)), reply]
        differences += np.abs(ours - [token['logprob'] for token in content]).tolist()
        gaps += (ours_TV.max(axis=1) - ours).tolist()
    return dict(
        tokens=len(gaps),
        mean_difference=statistics.mean(differences),
        largest_difference=max(differences),
        most_likely_too=sum(gap == 0 for gap in gaps),
        largest_gap=max(gaps),
    )


def reuse(server: Server) -> dict[str, int]:
    """Return the prompt tokens, and those among them that the server has computed before, of a shared beginning."""
    common = long_text(0)
    server.answer(f'{common} How many?', 1)
    usage = server.answer(f'{common} Which is the largest?', 1)['usage']
    return dict(prompt_tokens=usage['prompt_tokens'], cached_tokens=usage['prompt_tokens_details']['cached_tokens'])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--url', required=True)
    parser.add_argument('--model', required=True, type=Path)
    parser.add_argument('--dtype', default='float32')
    args = parser.parse_args()
    server, local = Server(args.url), Local(args.model, args.dtype)
    results = dict(dtype=args.dtype, reuse=reuse(server), agreement=agreement(server, local, args.model), speed=[])
    print(results)
    fresh = iter(range(1, 10_000))  # so that no prompt is in the server's cache
    for kind, new_tokens in (('prompt', 1), ('answer', NEW_TOKENS)):
        for parallel in PARALLEL:
            sampler, speeds = local.sampler(parallel, new_tokens), []
            for number in range(ROUNDS + 1):
                texts = [long_text(next(fresh)) if new_tokens == 1 else QUESTIONS[i] for i in range(parallel)]
                pair = server.speed(texts, new_tokens), local.speed(sampler, texts, new_tokens)
                if number:  # the first round compiles the sampler
                    speeds.append(pair)
            del sampler  # so that two models are never in memory
            served, ours = (statistics.median(column) for column in zip(*speeds, strict=True))
            ratio = statistics.median(one / other for one, other in speeds)
            row = dict(tokens_of=kind, parallel=parallel, server=served, sampler=ours, ratio=ratio)
            results['speed'].append(row | dict(load=os.getloadavg()[0]))
            print(results['speed'][-1])
    write_json(Path(__file__).parent / 'results' / 'teacher_speed.json', results)


if __name__ == '__main__':
    main()
