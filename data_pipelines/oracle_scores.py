"""Simulated users' own checks score the candidates of training users, for runs that leave the reward model out.

    python -m data_pipelines.oracle_scores --config=configs/NAME.py

A prompt whose replies satisfy no taste has no best one, and no scores.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.stage import Stage, Task, input_digest, read_records
from data_pipelines.simulator.data import REQUESTS, request_number, tastes_of, users_by_hash
from data_pipelines.simulator.requests import Request
from data_pipelines.simulator.tastes import satisfaction, share_met, valid
from rlhi_jax.io.files import file_digest


def oracle_score(reply: str, request: Request, finished: bool, tastes: dict[str, str]) -> float:
    """A valid reply's share of tastes met; of any other a tenth and less, so that what it misses still ranks it.

    Every invalid reply is below all valid ones that meet a taste, but one that meets all is above a valid one that
    meets none: the worst of N is to differ from the best in tastes, not in validity alone.
    """
    met = share_met(reply, tastes)
    return met if valid(reply, request, finished) else 0.2 * met - 0.1


def _identity(config: ConfigDict) -> dict[str, Any]:
    return dict(
        candidates=input_digest(config, 'candidates'),
        users=file_digest(Path(config.data.raw) / 'users.jsonl'),
        conversations=config.simulated.conversations,
    )


def _work(task: Task) -> dict[str, int]:
    config = task.config
    users, scores = users_by_hash(config), []
    for record in read_records(config, 'candidates'):
        request = REQUESTS[record['messages'][-1]['content']]
        tastes = tastes_of(config, users[record['user_id']], request_number(record['id']), request.text)
        said = [(reply['text'], request, reply['finished'], tastes) for reply in record['replies']]
        some_satisfy = any(satisfaction(*one) > 0 for one in said)
        values = [oracle_score(*one) if some_satisfy else None for one in said]
        scores.append(dict(id=record['id'], scores=values))
    return task.write(scores, Counter(prompts=len(scores)))


STAGE = Stage('oracle_scores', 1, _work, 'data.scores', _identity)

if __name__ == '__main__':
    STAGE.main()
