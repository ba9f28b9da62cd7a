"""Writes and reads the persona store: the files of claims, users and personas that the stage `personas` writes."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author
from data_pipelines.core.inputs import input_folder
from data_pipelines.core.record_files import as_line, stream_records
from data_pipelines.core.records import Claim, TurnPersona, UserPersona
from data_pipelines.core.stage import Task
from data_pipelines.persona.claims import State, contradicts, oldest_first, persona, replaces, states, versions
from data_pipelines.persona.scopes import states_at_turns
from rlhi_jax.config.paths import require
from rlhi_jax.io.files import file_digest, new_file
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.tokenizers import load_tokenizer

USERS, CLAIMS = 'users.jsonl', 'claims.jsonl'
COUNTED = ('remarks', 'remarks_without_answer', 'claims', 'edited', 'users', 'users_with_persona')
CACHED = 2**12  # maximum number of entries in each of the two caches (token counts and personas)


def user_personas(config: ConfigDict) -> dict[str, str]:
    """Return the personas in the store, keyed by user id. Each persona is based on the user's whole history."""
    return {user['user_id']: user['persona'] for user in stream_records(input_folder(config, 'personas') / USERS)}


def user_personas_digest(config: ConfigDict) -> str:
    """Return a digest of the file that `user_personas` reads."""
    return file_digest(input_folder(config, 'personas') / USERS)


def claims_digest(config: ConfigDict) -> str:
    """Return a digest of the store's claims."""
    return file_digest(input_folder(config, 'personas') / CLAIMS)


def token_counter(config: ConfigDict) -> Callable[[str], int]:
    """Return a function that counts tokens with the policy's tokenizer, because the policy reads the personas."""
    require(config, 'model.path')
    tokenizer = load_tokenizer(open_model(config.model.path).tokenizer_path)
    return functools.lru_cache(CACHED)(lambda text: len(tokenizer.encode(text)))


def tokenizer_digest(config: ConfigDict) -> str:
    """Return a digest of the tokenizer that `token_counter` uses."""
    return _digest_of_tokenizer(open_model(config.model.path).tokenizer_path)


@functools.cache
def _digest_of_tokenizer(folder: Path) -> str:
    return load_tokenizer(folder).digest


def write_store(
    task: Task, claims_by_author: Iterable[tuple[Author, Sequence[Claim]]], counts: Counter
) -> dict[str, int]:
    """Write the store's files and its manifest, and return the counts.

    Args:
      claims_by_author: all authors in the order of the conversations, each with their claims in the order of the turns.
    """
    settings, persona_of = task.config.personas, persona_maker(task.config)

    def records(claims_file: BinaryIO, users_file: BinaryIO) -> Iterator[TurnPersona]:
        for author, claims in claims_by_author:
            claims_file.writelines(map(as_line, claims))
            counts.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
            claims = oldest_first(claims)
            if author.user_id:
                history = states(claims, max_claims=settings.max_claims)
                _count_replaced(history, claims, counts)
                user = UserPersona(user_id=author.user_id, persona=persona_of(history[-1]), versions=versions(history))
                users_file.write(as_line(user))
                counts.update(users=1, users_with_persona=bool(user['persona']))
            for turn, state in states_at_turns(author.conversations.values(), claims, settings):
                text = persona_of(state)
                counts.update(turns=1, turns_with_persona=bool(text))
                yield TurnPersona(id=turn, persona=text)

    with new_file(task.folder / CLAIMS) as claims_file, new_file(task.folder / USERS) as users_file:
        return task.write(records(claims_file, users_file), counts)


def persona_maker(config: ConfigDict) -> Callable[[State], str]:
    """Return a function that makes a persona from the claims that are valid at a turn.

    A persona has at most `config.personas.max_tokens` tokens. The function caches personas, keyed by the claims' texts.
    """
    max_tokens, count = config.personas.max_tokens, token_counter(config)
    of_texts = functools.lru_cache(CACHED)(lambda texts: persona(texts, max_tokens=max_tokens, count=count))
    return lambda state: of_texts(tuple(claim['text'] for claim in state))


def _count_replaced(history: Sequence[State], claims: Sequence[Claim], counts: Counter) -> None:
    """Count each replaced claim, as `contradicted` if the newer claim contradicts it, and otherwise as `repeated`."""
    for before, claim in zip(history, claims, strict=False):
        for older in before:
            kind = 'contradicted' if contradicts(claim['text'], older['text']) else 'repeated'
            counts[kind] += replaces(claim['text'], older['text'])
