"""Read the files of simulated users and of their prompts that `data_pipelines.sources.simulated` wrote."""

from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.core.record_files import load_records
from data_pipelines.core.records import SPLITS, Candidate, PromptRecord, Record, SimulatedUser
from data_pipelines.simulator.requests import Request, requests
from data_pipelines.simulator.tastes import Tastes
from data_pipelines.simulator.users import hashed, request_number, tastes_at
from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError

USERS, PROMPTS = 'users.jsonl', 'prompts.jsonl'
_REQUESTS = {request.text: request for split in SPLITS for request in requests(split)}


def load_users(config: ConfigDict) -> dict[str, SimulatedUser]:
    """Return the simulated users, keyed by their `user_id` in conversations and prompts."""
    return {hashed(user['id']): user for user in _load(config, USERS)}


def load_prompts(config: ConfigDict, split: str) -> list[PromptRecord]:
    """Return the prompts of the users in a split, each with a persona that states the user's tastes exactly."""
    return [prompt for prompt in _load(config, PROMPTS) if prompt['split'] == split]


def _load(config: ConfigDict, name: str) -> list[Record]:
    require(config, 'data.raw')
    path = Path(config.data.raw) / name
    if not path.exists():
        raise UserError(
            f'config.data.raw: {path} does not exist: set the key to a folder that '
            '`python -m data_pipelines.sources.simulated` wrote'
        )
    return load_records(path)


def request_of(prompt: PromptRecord | Candidate) -> Request:
    """Return the simulated user's request at the end of a prompt."""
    return _REQUESTS[prompt['messages'][-1]['content']]


def tastes_of(config: ConfigDict, user: SimulatedUser, prompt: PromptRecord | Candidate) -> Tastes:
    """Return the tastes that a reply to one of a user's prompts should satisfy."""
    return tastes_at(user, request_number(prompt['id']), config.simulated.conversations, request_of(prompt))
