"""What stages ask of a model: replies to prompts, and scores of replies; journaled as they come.

Replies may come from an OpenAI-compatible endpoint instead of a model folder (`data_pipelines.endpoint`); scores and
likelihoods need a local model.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import endpoint
from data_pipelines.stage import Journal
from rlhi_jax.checkpoints import open_model
from rlhi_jax.config import is_endpoint, likelihood_path
from rlhi_jax.data.rows import Capacities
from rlhi_jax.generate import Generator, Prompt, Reply
from rlhi_jax.progress import Progress
from rlhi_jax.rewards import Candidates, CandidateScorer
from rlhi_jax.tokenizers.template import ChatTemplate

BLOCK = 16  # prompts that are scored between two entries in the journal


def model_identity(config: ConfigDict, path: str) -> dict[str, Any]:
    """What a model's replies and scores depend on: its weights, how it reads and ends a turn, its arithmetic.

    Of an endpoint's model that is its name and how it is sampled.
    """
    if is_endpoint(path):
        return endpoint.identity(config)
    model = open_model(path)
    read_as = _template_digest(model.tokenizer_path, model.weights)
    return dict(weights=model.weights, template=read_as, tokens=model.tokens, dtype=config.model.dtype)


@functools.cache  # a stage asks several times; the weights tell one import of a folder from the next
def _template_digest(folder: Path, weights: str) -> str:
    return ChatTemplate.load(folder).digest


def generate(
    config: ConfigDict, folder: Path, identity: Any, model_path: str, prompts: Sequence[Prompt]
) -> dict[str, list[Reply]]:
    """The replies to each prompt by its id, in order of their number.

    Replies are on disk as soon as they are there: work that was interrupted goes on where it stopped, with the same
    result. A prompt that does not fit `config.sampler.prompt_tokens` loses its oldest exchanges; one that has to keep
    what does not fit has no replies. Where the model is an endpoint, what fits is for the endpoint to say.
    """
    if is_endpoint(model_path):
        return endpoint.replies(config, folder, identity, prompts)
    journal = Journal(folder, identity)
    wanted = {f'{prompt.id} {sample}': prompt.id for prompt in prompts for sample in range(prompt.samples)}
    if any(True for _ in journal.missing(wanted)):
        generator = Generator(config, model_path)
        fitting = {prompt.id: fitted for prompt in prompts if (fitted := generator.fit(prompt))}
        wanted = {key: name for key, name in wanted.items() if name in fitting}
        # A prompt is sampled again as a whole: what was drawn already comes out the same.
        left = dict.fromkeys(wanted[key] for key in journal.missing(wanted))
        total = sum(fitting[name].samples for name in left)
        with Progress(folder.name.strip('.').removesuffix('.tmp'), total, unit='replies') as progress:
            for done, reply in enumerate(generator.replies([fitting[name] for name in left]), start=1):
                if (key := f'{reply.id} {reply.sample}') not in journal.done:
                    journal.add(key, [reply.text, reply.finished])
                progress.update(done)
    replies: dict[str, list[Reply]] = {prompt.id: [] for prompt in prompts}
    for prompt in prompts:
        for sample in range(prompt.samples):
            if (key := f'{prompt.id} {sample}') in journal.done:
                replies[prompt.id].append(Reply(prompt.id, sample, *journal.done[key]))
    return replies


def scores(
    folder: Path, identity: Any, make_scorer: Callable[[], CandidateScorer], items: Sequence[Candidates]
) -> dict[str, list[float | None]]:
    """Each prompt's candidates' scores by its id, a block at a time; None for a candidate that fits no row."""
    journal = Journal(folder, identity)
    # Blocks are the same after an interruption, and with them what shares a row: so are the last bits of a score.
    blocks = [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
    left = [block for block in blocks if any(True for _ in journal.missing(item.id for item in block))]
    if left:
        scorer = make_scorer()
        with Progress('scores', len(left), unit='blocks') as progress:
            for done, block in enumerate(left, start=1):
                for name, values in scorer(block).items():
                    if name not in journal.done:
                        journal.add(name, values)
                progress.update(done)
    return {item.id: journal.done[item.id] for item in items}


def likelihoods(
    config: ConfigDict, folder: Path, identity: Any, items: Sequence[Candidates]
) -> dict[str, list[float | None]]:
    """Log-probabilities of replies in nats, under the teacher, or under the policy where the teacher is an endpoint."""
    chunk, tokens = config.model.logprob_chunk, config.teacher.row_tokens
    room = Capacities(tokens=tokens, scored=max(1, tokens * 3 // 4 // chunk) * chunk, pairs=64)
    return scores(
        folder, identity, lambda: CandidateScorer(config, likelihood_path(config), room, sees_persona=False), items
    )
