"""One round of online training in a folder: the policy's replies, and the pairs that a judge's scores make of them.

    replies-P.jsonl   the replies that process P has sampled, each written as soon as it is complete
    pairs.jsonl       the best and the worst reply to each request, if they make a pair
    round.json        counts and means; the other files are complete if this file exists

Only the order of the lines in replies-P.jsonl depends on timing and on the number of processes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.core.record_files import as_line, write_records
from data_pipelines.core.records import Candidate, PreferenceRecord, PromptRecord
from data_pipelines.core.turns import BEST_WORST
from data_pipelines.preferences.candidates import (
    Scores,
    asked,
    best_and_worst,
    candidate_of,
    preference_record,
    reason_to_drop,
)
from data_pipelines.preferences.files import read_preferences
from data_pipelines.teacher.generation import model_identity
from rlhi_jax.config import settings_identity
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.tree import Interaction
from rlhi_jax.io.files import complete_lines, digest, write_bytes, write_json
from rlhi_jax.parallel import processes
from rlhi_jax.sampling.generator import Generator, Prompt, Reply

PAIRS, ROUND = 'pairs.jsonl', 'round.json'

Judge = Callable[[Sequence[Candidate]], list[Scores]]


def rounds_identity(config: ConfigDict, requests: str) -> dict[str, Any]:
    """Return what the rounds of an online run depend on, beside the training settings.

    `requests` is a digest of the requests and of the personas of strangers. With it, changes to other users' data do
    not make the run a different one.
    """
    candidates, judge = config.candidates, config.candidates.reward_model
    settings = {name: candidates[name] for name in ('samples', 'scorer', 'strangers', 'max_prompts')}
    return dict(
        requests=requests,
        policy=model_identity(config, config.model.path),
        judge=model_identity(config, judge) if candidates.scorer == 'reward_model' else '',
        sampler=settings_identity(config, 'sampler') | dict(sees_persona=config.sampler_sees_persona),
        settings=settings | config.online.to_dict(),
        pairs={name: config.pairs[name] for name in ('min_score_gap', 'length_penalty')},
    )


class RoundFolder:
    """A round's folder. All processes of a run use the same folder.

    Attributes:
      folder: its path.
      prompts: the requests of the round.
    """

    def __init__(self, folder: Path, prompts: Sequence[PromptRecord], config: ConfigDict):
        self.folder, self.prompts, self._config = folder, prompts, config

    def is_finished(self) -> bool:
        """Return whether the folder has its pairs. All processes must call this method.

        Raises:
          UserError: the processes see different files.
        """
        finished = (self.folder / ROUND).exists()
        processes.check_agreement(digest(finished), str(self.folder))
        return finished

    def missing(self) -> list[Prompt]:
        """Return the requests to which the folder lacks replies. All processes must call this method.

        Raises:
          UserError: the processes see different files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.parent.chmod(0o700)  # it has users' texts
        known = {(reply.id, reply.sample) for reply in self._replies()}
        processes.check_agreement(digest(sorted(known)), str(self.folder))  # and wait until all have read
        wanted = (asked(prompt, self._config) for prompt in self.prompts)
        return [prompt for prompt in wanted if any((prompt.id, n) not in known for n in range(prompt.samples))]

    def sample(self, generator: Generator, missing: Sequence[Prompt]) -> Iterator[int]:
        """Sample this process's part of the missing replies; yield the number of replies after each of them."""
        mine = missing[processes.index() :: processes.count()]
        fitted = [shorter for prompt in mine if (shorter := generator.fit(prompt))]
        users = {prompt['id']: prompt['user_id'] for prompt in self.prompts}
        path = self.folder / f'replies-{processes.index()}.jsonl'
        write_bytes(path, b''.join(complete_lines(path)))  # a killed process may have left half a line
        with open(path, 'ab') as file:
            for done, reply in enumerate(generator.replies(fitted), start=1):
                file.write(as_line(reply._asdict() | dict(user_id=users[reply.id])))
                file.flush()
                yield done

    def pair(self, judge: Judge) -> dict[str, Any]:
        """Score the replies, write the pairs, and return what round.json says.

        All processes must call this method, and the judge must return the same scores in all of them.

        Raises:
          UserError: the processes see different files.
        """
        processes.barrier('a round has been sampled')
        counts: Counter = Counter(prompts=len(self.prompts))
        drawn: dict[str, dict[int, Reply]] = {prompt['id']: {} for prompt in self.prompts}
        for reply in self._replies():
            drawn[reply.id][reply.sample] = reply
        processes.check_agreement(digest([sorted(replies) for replies in drawn.values()]), str(self.folder))
        by_sample = {name: [replies[n] for n in sorted(replies)] for name, replies in drawn.items()}
        read = (candidate_of(prompt, by_sample[prompt['id']], counts) for prompt in self.prompts)
        candidates = [candidate for candidate in read if candidate]
        scored = [
            Candidate(**candidate, scores=scores)
            for candidate, scores in zip(candidates, judge(candidates) if candidates else [], strict=True)
        ]
        pairs = list(_pairs(scored, self._config.pairs, counts))
        counts['pairs'] = len(pairs)
        says = dict(counts=dict(sorted(counts.items())), **_means(scored, pairs))
        if processes.is_main():
            write_records(self.folder / PAIRS, pairs)
            write_json(self.folder / ROUND, says)
        processes.barrier('a round has its pairs')
        return says

    def trees(self) -> list[Interaction]:
        """Return the interaction trees of the pairs."""
        return grow_trees(read_preferences([self.folder / PAIRS], Counter()))

    def _replies(self) -> Iterator[Reply]:
        for path in sorted(self.folder.glob('replies-*.jsonl')):
            for line in complete_lines(path):
                record = json.loads(line)
                yield Reply(**{name: record[name] for name in Reply._fields})


def _pairs(candidates: Sequence[Candidate], settings: Any, counts: Counter) -> Iterator[PreferenceRecord]:
    for candidate in candidates:
        counts['dropped_replies_longer_than_a_row'] += candidate['scores'].count(None)
        if sides := best_and_worst(candidate, settings, counts):
            pair = preference_record(candidate, *sides, BEST_WORST)
            if reason := reason_to_drop(pair):
                counts[f'dropped_{reason}'] += 1
            else:
                yield pair


def _means(candidates: Sequence[Candidate], pairs: Sequence[PreferenceRecord]) -> dict[str, float | None]:
    """Return the mean score of all replies, and the mean number of words on both sides of the pairs."""
    scores = [score for candidate in candidates for score in candidate['scores'] if score is not None]
    words = {side: [len(pair[side][0]['content'].split()) for pair in pairs] for side in ('chosen', 'rejected')}
    values = dict(score=scores, words_chosen=words['chosen'], words_rejected=words['rejected'])
    return {f'mean_{name}': float(np.mean(numbers)) if numbers else None for name, numbers in values.items()}
