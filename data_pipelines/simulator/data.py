"""The files that the simulator wrote, read back by what evaluates simulated users."""

from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.core.stage import Record, load_records
from data_pipelines.simulator.requests import SPLITS, requests
from data_pipelines.simulator.users import hashed, tastes_at
from rlhi_jax.config.paths import require
from rlhi_jax.io.errors import UserError


def raw(config: ConfigDict, name: str) -> list[Record]:
    require(config, 'data.raw')
    path = Path(config.data.raw) / name
    if not path.exists():
        raise UserError(f'{path} does not exist: config.data.raw must be a folder of data_pipelines.sources.simulated')
    return load_records(path)


def users_by_hash(config: ConfigDict) -> dict[str, Record]:
    """Simulated users by the id that stands for them in conversations and prompts."""
    return {hashed(user['id']): user for user in raw(config, 'users.jsonl')}


def tastes_of(config: ConfigDict, user: Record, number: int, text: str) -> dict[str, str]:
    """What a user likes in a reply to their request of this number and text."""
    return tastes_at(user, number, config.simulated.conversations, REQUESTS[text])


def request_number(prompt_id: str) -> int:
    return int(prompt_id.rsplit('/', 1)[1])


REQUESTS = {request.text: request for split in SPLITS for request in requests(split)}
