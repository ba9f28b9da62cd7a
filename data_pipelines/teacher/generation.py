"""What stages ask of a model: replies to prompts, and scores of replies; journaled as they come.

Replies may come from an OpenAI-compatible endpoint instead of a model folder
(`data_pipelines.teacher.endpoint`); scores and likelihoods need a local model.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.stage import Task, in_blocks
from data_pipelines.teacher import endpoint
from rlhi_jax.config import is_endpoint, likelihood_path
from rlhi_jax.data.rows import Capacities
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Generator, Prompt, Reply, release
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
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


def generate(task: Task, model_path: str, prompts: Sequence[Prompt]) -> dict[str, list[Reply]]:
    """The replies to each prompt by its id, in order of their number.

    Replies are on disk as soon as they are there: work that was interrupted goes on where it stopped, with the same
    result. A prompt that does not fit `config.sampler.prompt_tokens` loses its oldest exchanges; one that has to keep
    what does not fit has no replies. Where the model is an endpoint, what fits is for the endpoint to say.
    """
    journal = task.journal
    left = [prompt for prompt in prompts if any(key not in journal for key in endpoint.keys(prompt))]
    if left and is_endpoint(model_path):
        endpoint.draw(task, left)
    elif left:
        _draw(task, model_path, left)
    replies: dict[str, list[Reply]] = {}
    for prompt in prompts:
        replies[prompt.id] = [
            Reply(prompt.id, sample, said['text'].strip(), said['finished'])
            for sample, said in enumerate(map(journal.__getitem__, endpoint.keys(prompt)))
            if said['text'] is not None
        ]
    return replies


def _draw(task: Task, model_path: str, prompts: Sequence[Prompt]) -> None:
    """What `endpoint.draw` does, by a local model.

    A prompt is sampled again as a whole: what was drawn already comes out the same.
    """
    task.release()  # of a scorer: one model is in memory at a time
    generator = Generator(task.config, model_path)
    keys = {prompt.id: endpoint.keys(prompt) for prompt in prompts}
    fitted = {prompt.id: generator.fit(prompt) for prompt in prompts}

    def note(key: endpoint.Key, text: str | None, finished: bool) -> None:
        if key not in task.journal:
            task.journal.add(key, dict(text=text, finished=finished))

    for name, shorter in fitted.items():
        for key in keys[name] if shorter is None else ():
            note(key, None, False)  # said once, for a model need not be loaded to say it again
    fitting = [shorter for shorter in fitted.values() if shorter]
    with Progress(task.name, sum(prompt.samples for prompt in fitting), unit='replies') as progress:
        for done, reply in enumerate(generator.replies(fitting), start=1):
            note(keys[reply.id][reply.sample], reply.text, reply.finished)
            progress.update(done)


def scores(
    task: Task, model_path: str, make_scorer: Callable[[], CandidateScorer], items: Sequence[Candidates]
) -> dict[str, list[float | None]]:
    """Each prompt's candidates' scores by its id, a block at a time; None for a candidate that fits no row.

    The scorer of a model is made once a task, and only if something is left to score.
    """
    journal = task.journal
    # Blocks are the same after an interruption, and with them what shares a row: so are the last bits of a score.
    left = [block for block in in_blocks(items, BLOCK) if any(('scores', item.id) not in journal for item in block)]
    if left:
        release()  # of a sampler
        scorer = task.keep(model_path, make_scorer)
        with Progress('scores', len(left), unit='blocks') as progress:
            for done, block in enumerate(left, start=1):
                for name, values in scorer(block).items():
                    if ('scores', name) not in journal:
                        journal.add(('scores', name), values)
                progress.update(done)
    return {item.id: journal['scores', item.id] for item in items}


def likelihoods(task: Task, items: Sequence[Candidates]) -> dict[str, list[float | None]]:
    """Log-probabilities of replies in nats, under the teacher, or under the policy where the teacher is an endpoint."""
    config, path = task.config, likelihood_path(task.config)
    chunk, tokens = config.model.logprob_chunk, config.teacher.row_tokens
    room = Capacities(tokens=tokens, scored=max(1, tokens * 3 // 4 // chunk) * chunk, pairs=64)
    return scores(task, path, lambda: CandidateScorer(config, path, room, sees_persona=False), items)
