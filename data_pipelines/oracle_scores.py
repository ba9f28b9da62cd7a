"""Scores candidate replies by how well they suit the tastes of simulated users, for runs without a reward model.

    python -m data_pipelines.oracle_scores --config=configs/NAME.py

`data_pipelines/simulator/tastes.py` defines the tastes and what makes a reply valid. If no valid reply to a
prompt satisfies any of the user's tastes, all replies to it get the score None, because there is no best reply.
"""

from data_pipelines.core.stage import Stage, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_digest, read_records
from data_pipelines.core.records import CandidateScores
from data_pipelines.simulator.files import USERS, load_users, request_of, tastes_of
from data_pipelines.simulator.requests import Request
from data_pipelines.simulator.tastes import Tastes, satisfaction, share_met, valid
from rlhi_jax.io.files import file_digest


def oracle_score(reply: str, request: Request, finished: bool, tastes: Tastes) -> float:
    """Return the fraction of tastes that a valid reply satisfies, from 0 to 1. Invalid replies score from -0.1 to 0.1.

    An invalid reply scores below every valid reply that satisfies a taste. But an invalid reply that satisfies all
    tastes scores above a valid reply that satisfies none. As a result, the best and the worst of N replies differ in
    the tastes that they satisfy, not only in validity.
    """
    met = share_met(reply, tastes)
    return met if valid(reply, request, finished) else 0.2 * met - 0.1


def _identity(config: ConfigDict) -> dict[str, Any]:
    return dict(
        candidates=input_digest(config, 'candidates'),
        users=file_digest(Path(config.data.raw) / USERS),
        conversations=config.simulated.conversations,
    )


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter(prompts=0)
    return task.write(_scores(task.config, counts), counts)


def _scores(config: ConfigDict, counts: Counter) -> Iterator[CandidateScores]:
    users = load_users(config)
    for candidate in read_records(config, 'candidates'):
        request, tastes = request_of(candidate), tastes_of(config, users[candidate['user_id']], candidate)
        replies = [(reply['text'], request, reply['finished'], tastes) for reply in candidate['replies']]
        some_satisfy = any(satisfaction(*reply) > 0 for reply in replies)
        counts['prompts'] += 1
        yield CandidateScores(
            id=candidate['id'], scores=[oracle_score(*reply) if some_satisfy else None for reply in replies]
        )


STAGE = Stage(name='oracle_scores', version=1, work=_work, output='data.scores', identity=_identity)

if __name__ == '__main__':
    STAGE.main()
