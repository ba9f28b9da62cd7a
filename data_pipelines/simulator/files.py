"""The simulator's files, as the evaluation of simulated users reads them back."""

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
    """Simulated users by their `user_id` in conversations and prompts."""
    return {hashed(user['id']): user for user in _load(config, USERS)}


def load_prompts(config: ConfigDict, split: str) -> list[PromptRecord]:
    """The prompts of the users of a split, each with the oracle's persona."""
    return [prompt for prompt in _load(config, PROMPTS) if prompt['split'] == split]


def _load(config: ConfigDict, name: str) -> list[Record]:
    require(config, 'data.raw')
    path = Path(config.data.raw) / name
    if not path.exists():
        raise UserError(
            f'config.data.raw: {path} does not exist: name a folder that `python -m data_pipelines.sources.simulated` '
            'made'
        )
    return load_records(path)


def request_of(prompt: PromptRecord | Candidate) -> Request:
    """The request of a simulated user that a prompt ends in."""
    return _REQUESTS[prompt['messages'][-1]['content']]


def tastes_of(config: ConfigDict, user: SimulatedUser, prompt: PromptRecord | Candidate) -> Tastes:
    """The user's tastes in a reply to a prompt of theirs."""
    return tastes_at(user, request_number(prompt['id']), config.simulated.conversations, request_of(prompt))
