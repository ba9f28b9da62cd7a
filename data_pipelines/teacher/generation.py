"""Generates replies to prompts and scores replies. Each result is added to the journal as soon as it is available.

Replies come from a model folder or from an OpenAI-compatible endpoint (`data_pipelines.teacher.endpoint`). Scores and
log-probabilities need a model folder. Only one model is in memory at a time (`rlhi_jax.models.resident`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.passes import in_blocks
from data_pipelines.core.stage import Task
from data_pipelines.teacher import endpoint
from rlhi_jax.config import is_endpoint
from rlhi_jax.data.rows import Capacities
from rlhi_jax.io.progress import Progress
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.resident import RESIDENT
from rlhi_jax.parallel.crew import share, shared
from rlhi_jax.sampling.generator import Generator, Prompt, Reply, draw
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.tokenizers.template import ChatTemplate

BLOCK = 16  # prompts that are scored together before their scores are added to the journal


def model_identity(config: ConfigDict, path: str) -> dict[str, Any]:
    """Return the properties that determine a model's replies and scores: weights, template, control tokens and dtype.

    For an endpoint, return the settings that affect its answers (`endpoint.identity`).
    """
    if is_endpoint(path):
        return endpoint.identity(config)
    model = open_model(path)
    template = _template_digest(model.tokenizer_path, model.weights)
    return dict(weights=model.weights, template=template, tokens=model.tokens, dtype=config.model.dtype)


@functools.cache  # called several times per stage; `weights` distinguishes imports into the same folder
def _template_digest(folder: Path, weights: str) -> str:
    return ChatTemplate.load(folder).digest


def generate(task: Task, model_path: str, prompts: Sequence[Prompt]) -> dict[str, list[Reply]]:
    """Return the replies to each prompt, keyed by prompt id and in the order of their sample numbers.

    Every reply is added to the journal as soon as it is sampled, so interrupted work resumes with the same result. A
    prompt longer than `config.sampler.prompt_tokens` loses its oldest exchanges. A prompt whose last `keep` turns do
    not fit gets no replies. An endpoint decides for itself which prompts fit.
    """
    journal = task.journal
    missing = [prompt for prompt in prompts if any(key not in journal for key in endpoint.keys(prompt))]
    if missing and is_endpoint(model_path):
        endpoint.draw(task, missing)
    elif missing:
        _draw(task, model_path, missing)
    replies: dict[str, list[Reply]] = {}
    for prompt in prompts:
        replies[prompt.id] = [
            Reply(prompt.id, sample, entry['text'].strip(), entry['finished'])
            for sample, entry in enumerate(map(journal.__getitem__, endpoint.keys(prompt)))
            if entry['text'] is not None
        ]
    return replies


def _draw(task: Task, model_path: str, prompts: Sequence[Prompt]) -> None:
    """Sample replies from a local model and add them to the journal, like `endpoint.draw`.

    The processes of the run share the prompts.

    If one sample of a prompt is missing, all its samples are drawn again. Those already in the journal do not change.
    """
    generator = Generator.open(task.config, model_path)
    keys = {prompt.id: endpoint.keys(prompt) for prompt in prompts}
    fitted = {prompt.id: generator.fit(prompt) for prompt in prompts}

    def note(key: endpoint.Key, text: str | None, finished: bool) -> None:
        if key not in task.journal:
            task.journal.add(key, dict(text=text, finished=finished))

    for name, shorter in fitted.items():
        for key in keys[name] if shorter is None else ():
            note(key, None, False)  # so that a later run need not load the model to see that the prompt is too long
    fitting = [shorter for shorter in fitted.values() if shorter]
    with Progress(task.name, sum(prompt.samples for prompt in fitting), unit='replies') as progress:
        replies = map(Reply._make, share(draw, task.config, dict(model=model_path), fitting))
        for done, reply in enumerate(replies, start=1):
            note(keys[reply.id][reply.sample], reply.text, reply.finished)
            progress.update(done)


def scores(
    task: Task, model_path: str, items: Sequence[Candidates], *, capacities: Capacities, sees_persona: bool
) -> dict[str, list[float | None]]:
    """Return the scores of each prompt's candidates, keyed by prompt id.

    The score of a candidate that is too long for a row is None. A model with a reward head gives rewards; any other
    model gives log-probabilities in nats. The model is loaded only if scores are missing from the journal.

    Args:
      items: the prompts, each with its candidates.
      capacities: the capacities of the rows that are scored.
      sees_persona: whether the model sees the personas.
    """
    journal = task.journal
    # A score's last bits depend on what else is in its row, so an interruption must not change the blocks.
    missing = [block for block in in_blocks(items, BLOCK) if any(('scores', item.id) not in journal for item in block)]
    if missing:
        arguments = dict(model=model_path, capacities=dataclasses.asdict(capacities), sees_persona=sees_persona)
        with Progress('scores', len(missing), unit='blocks') as progress:
            for done, block_scores in enumerate(share(score, task.config, arguments, missing), start=1):
                for name, values in block_scores.items():
                    if ('scores', name) not in journal:
                        journal.add(('scores', name), values)
                progress.update(done)
    return {item.id: journal['scores', item.id] for item in items}


@shared
def score(
    config: ConfigDict, arguments: dict[str, Any], blocks: Sequence[Sequence[Candidates]]
) -> Iterator[dict[str, list[float | None]]]:
    """Yield the scores of each block's candidates, keyed by prompt id.

    Args:
      config: the config.
      arguments: three arguments of `scores` as JSON values: `model_path` (under the key 'model'), `capacities` and
        `sees_persona`.
      blocks: the candidates, in blocks that are scored together.
    """
    if blocks:
        capacities = Capacities(**arguments['capacities'])
        scorer = _scorer(config, arguments['model'], capacities, arguments['sees_persona'])
        for block in blocks:
            yield scorer([Candidates(*item) for item in block])


def _scorer(
    config: ConfigDict, model_path: str, capacities: Capacities, sees_persona: bool
) -> Callable[[Sequence[Candidates]], dict[str, list[float | None]]]:
    """Return a model's scorer, which stays in memory until another model is needed."""
    model = open_model(model_path)
    key = (
        'scorer',
        str(model.path),
        model.weights,  # the model in a folder may have been replaced since the last call
        capacities,
        sees_persona,
        # What `CandidateScorer` reads from the config:
        tuple(config.mesh.to_dict().items()),
        config.model.dtype,
        config.model.logprob_chunk,
        config.eval.batch_rows,
        config.data.threads,
        config.seed,
    )
    return RESIDENT.get(key, lambda: CandidateScorer(config, model_path, capacities, sees_persona=sees_persona))


def likelihoods(task: Task, items: Sequence[Candidates], model_path: str) -> dict[str, list[float | None]]:
    """Return the log-probabilities (nats) of replies under a model without a reward head, keyed as in `scores`."""
    config, tokens = task.config, task.config.teacher.row_tokens
    chunk = config.model.logprob_chunk
    capacities = Capacities(tokens=tokens, scored=max(1, tokens * 3 // 4 // chunk) * chunk, pairs=64)
    return scores(task, model_path, items, capacities=capacities, sees_persona=False)


def rises(task: Task, items: Sequence[tuple[Candidates, Candidates]], model_path: str) -> list[list[float | None]]:
    """Return by how many nats each reply is more likely after the first of two prompts than after the second.

    Both prompts of an item have the same replies. A rise is None if either log-probability is (see `scores`).
    """
    log_probs = likelihoods(task, [prompt for both in items for prompt in both], model_path)
    return [
        [rise(*both) for both in zip(log_probs[first.id], log_probs[second.id], strict=True)] for first, second in items
    ]


def rise(log_prob: float | None, *others: float | None) -> float | None:
    """Return a log-probability minus the mean of others, or None if one of them is None.

    >>> rise(-1.0, -3.0), rise(-1.0, -3.0, -5.0), rise(-1.0, None)
    (2.0, 3.0, None)
    """
    if log_prob is None or any(other is None for other in others):
        return None
    return log_prob - sum(others) / len(others)
