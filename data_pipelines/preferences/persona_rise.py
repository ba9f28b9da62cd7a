"""Chooses the strangers whose personas a reply is scored under when the policy itself is the judge.

A reply suits a user if the user's persona makes it likelier than other users' personas do. The score of reply y to
request x, in nats, is log p(y | x, own persona) minus the mean of log p(y | x, stranger's persona) over some strangers.
"""

import heapq
from collections.abc import Iterable, Sequence

from data_pipelines.core.histories import author_id
from data_pipelines.core.records import PromptRecord
from data_pipelines.preferences.strangers import POOL, drawn_from, says_something_new
from rlhi_jax.io.files import digest

Entry = tuple[str, str]  # the id of a user (or of the prompt, if the user is unknown), and the user's persona


def entry_of(prompt: PromptRecord) -> Entry:
    return author_id(prompt['user_id'], prompt['id']), prompt['persona']


def persona_pool(prompts: Iterable[PromptRecord]) -> list[Entry]:
    """Return at most `POOL` different entries with a persona: those with the lowest hashes, in the order of these."""
    hashes: dict[str, Entry] = {}
    for prompt in prompts:
        if prompt['persona']:
            hashes[digest(*entry_of(prompt))] = entry_of(prompt)
            if len(hashes) >= 2 * POOL:  # so that memory does not grow with the number of prompts
                hashes = dict(heapq.nsmallest(POOL, hashes.items()))
    return [entry for _, entry in heapq.nsmallest(POOL, hashes.items())]


def strangers_personas(prompt: PromptRecord, pool: Sequence[Entry], most: int) -> list[str]:
    """Return up to `most` different personas of other users that ask for something else than the prompt's persona.

    The hash of the prompt's id decides where in the pool the search begins. It ends after `TRIES` entries.
    """
    user, persona = entry_of(prompt)
    found: dict[str, None] = {}
    for other, theirs in drawn_from(pool, digest('strangers', prompt['id'])):
        if other != user and says_something_new(persona, theirs) and says_something_new(theirs, persona):
            found[theirs] = None
            if len(found) == most:
                break
    return list(found)
