"""Which turns a persona may know: the registry of persona scopes."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.core.histories import Author
from data_pipelines.core.stage import Record
from data_pipelines.persona.claims import Claim, State, quote_of, states


def remarks(author: Author, turns: Sequence[Record], *, scope: str, first_k: int) -> list[Record]:
    """An author's feedback turns that some persona may know, as claims that have no text yet."""
    found = []
    for turn in turns:
        known = scope == 'first_k_turns' and turn['place'] // 2 < first_k
        if turn['mined'] and (turn['user_id'] or known):
            where = {key: turn[key] for key in ('id', 'user_id', 'conversation', 'place')}
            said_at = author.talks[turn['conversation']]['ended']
            found.append(where | dict(said_at=said_at, quote=quote_of(turn['follow_up']), edited=False))
    return found


def states_at_turns(
    talks: Iterable[Record], claims: Sequence[Claim], *, scope: str, first_k: int, max_claims: int
) -> Iterator[tuple[str, State]]:
    """What holds of an author at each of their turns (`CONVERSATION/PLACE`) that may be mined: what was said before it.

    Args:
      claims: the author's, oldest first.
    """
    if scope == 'first_k_turns':
        said = defaultdict(list)
        for claim in claims:
            if claim['place'] // 2 < first_k:
                said[claim['conversation']].append(claim)
        for talk in talks:
            known = states(said[talk['id']], max_claims=max_claims)[-1]
            yield from ((f'{talk["id"]}/{place}', known) for place in range(2 * first_k, len(talk['messages']), 2))
        return
    timed = [claim for claim in claims if claim['user_id'] and claim['said_at']]
    after, times = states(timed, max_claims=max_claims), [claim['said_at'] for claim in timed]
    for talk in talks:
        known = after[bisect_left(times, talk['began'])]
        yield from ((f'{talk["id"]}/{place}', known) for place in range(0, len(talk['messages']), 2))
