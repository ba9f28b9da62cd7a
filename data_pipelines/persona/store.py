"""The persona store: claims, users and the personas at their turns, as files."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author
from data_pipelines.core.stage import Record, Task, as_line, input_folder, stream_records
from data_pipelines.persona.claims import Claim, State, contradicts, oldest_first, persona, replaces, states, versions
from data_pipelines.persona.scopes import states_at_turns
from rlhi_jax.config.paths import require
from rlhi_jax.io.files import file_digest, new_file
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.tokenizers import load_tokenizer

USERS, CLAIMS = 'users.jsonl', 'claims.jsonl'

COUNTED = ('remarks', 'remarks_without_answer', 'claims', 'edited', 'users', 'users_with_persona')


def of_users(config: ConfigDict) -> dict[str, str]:
    """The persona of each user's whole history, by user id, from the finished stage."""
    return {user['user_id']: user['persona'] for user in stream_records(input_folder(config, 'personas') / USERS)}


def of_users_digest(config: ConfigDict) -> str:
    """Identifies what `of_users` reads."""
    return file_digest(input_folder(config, 'personas') / USERS)


def token_counter(config: ConfigDict) -> Callable[[str], int]:
    """How many tokens a text has for the policy, which reads personas."""
    require(config, 'model.path')
    tokenizer = load_tokenizer(open_model(config.model.path).tokenizer_path)
    return functools.lru_cache(2**12)(lambda text: len(tokenizer.encode(text)))


@functools.cache
def _tokenizer_digest(folder: Path) -> str:
    return load_tokenizer(folder).digest


def write_store(task: Task, everybody: Iterable[tuple[Author, list[Claim]]], counts: Counter) -> dict[str, int]:
    """Write the stage's files from everybody's claims."""
    p, count = task.config.personas, token_counter(task.config)

    @functools.lru_cache(2**12)
    def said(texts: tuple[str, ...]) -> str:
        return persona([dict(text=text) for text in texts], max_tokens=p.max_tokens, count=count)

    def persona_of(state: State) -> str:
        return said(tuple(claim['text'] for claim in state))

    def user(author: Author, claims: Sequence[Claim]) -> Record:
        history = states(claims, max_claims=p.max_claims)
        for before, claim in zip(history, claims, strict=False):
            for old in before:
                kind = 'contradicted' if contradicts(claim['text'], old['text']) else 'repeated'
                counts[kind] += replaces(claim['text'], old['text'])
        return dict(user_id=author.user_id, persona=persona_of(history[-1]), versions=versions(history))

    def records(claims_file: BinaryIO, users_file: BinaryIO) -> Iterator[Record]:
        for author, claims in everybody:
            claims_file.writelines(map(as_line, claims))
            counts.update(claims=len(claims), edited=sum(claim['edited'] for claim in claims))
            claims = oldest_first(claims)
            if author.user_id:
                users_file.write(as_line(found := user(author, claims)))
                counts.update(users=1, users_with_persona=bool(found['persona']))
            at_turns = states_at_turns(
                author.talks.values(), claims, scope=p.scope, first_k=p.first_k, max_claims=p.max_claims
            )
            for name, state in at_turns:
                text = persona_of(state)
                counts.update(turns=1, turns_with_persona=bool(text))
                yield dict(id=name, persona=text)

    with new_file(task.folder / CLAIMS) as claims_file, new_file(task.folder / USERS) as users_file:
        return task.write(records(claims_file, users_file), counts)
