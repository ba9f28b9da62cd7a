"""Claims about what users like, each from one remark, and what they amount to: a persona.

A claim is a record of

    id            CONVERSATION/PLACE of the user's turn that it comes from
    user_id       '' where the data has none
    conversation, place   where that turn stands
    said_at       when its conversation ended, which is all that is known; '' if nothing is
    quote         the opening of the turn, in its own words
    text          the claim, one sentence
    edited        whether somebody put it otherwise (see `data_pipelines/persona_store.py`)

A persona is a fold over claims, oldest first: what is said later holds. So it can be computed for any time, and depends
on nothing else.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from data_pipelines.core.stage import Record
from data_pipelines.persona.audit import MAX_CHARACTERS
from data_pipelines.text.styles import stems, styles

FIELDS = frozenset(('id', 'user_id', 'conversation', 'place', 'said_at', 'quote', 'text', 'edited'))
SAME = 0.5  # stems in common (Jaccard) of two claims that say the same, where neither speaks of a matter of style

Claim = Record
State = tuple[Claim, ...]  # claims that hold at a time, oldest first


def quote_of(turn: str) -> str:
    """The opening of a user's turn, whole words where it has to be cut; what a claim is made from.

    >>> len(quote_of('word ' * 100)), quote_of(' Shorter. ')
    (199, 'Shorter.')
    """
    turn = turn.strip()
    if len(turn) <= MAX_CHARACTERS:
        return turn
    opening = turn[: MAX_CHARACTERS + 1]
    return (opening.rsplit(maxsplit=1)[0] if any(map(str.isspace, opening)) else opening)[:MAX_CHARACTERS].strip()


def oldest_first(claims: Iterable[Claim]) -> list[Claim]:
    """An author's claims, which come in the order of their conversations and turns, in the order of time.

    Of one time, those of the conversation that ingest has put later are the newer.
    """
    return sorted(claims, key=lambda claim: claim['said_at'])


def replaces(newer: str, older: str) -> bool:
    """Whether what is said later stands instead of what was said before: it contradicts it, or covers it.

    >>> replaces('I like long answers.', 'I like short answers.'), replaces('I like lists.', 'I like short answers.')
    (True, False)
    """
    if contradicts(newer, older):
        return True
    now, before = styles(newer), styles(older)
    if before:
        return before.items() <= now.items()
    ours, theirs = stems(newer), stems(older)
    return newer == older or (not now and len(ours & theirs) >= SAME * len(ours | theirs) > 0)


def contradicts(one: str, other: str) -> bool:
    """Whether two claims take different sides in a matter of style."""
    ours = styles(one)
    return any(ours.get(matter, side) != side for matter, side in styles(other).items())


def step(state: State, claim: Claim, *, max_claims: int) -> State:
    """What holds once a claim is made: the others less those that it replaces, the newest of them."""
    return (*(old for old in state if not replaces(claim['text'], old['text'])), claim)[-max_claims:]


def states(claims: Iterable[Claim], *, max_claims: int) -> list[State]:
    """What holds before the first claim, after it, and so on; the claims come oldest first."""
    return list(accumulate(claims, lambda state, claim: step(state, claim, max_claims=max_claims), initial=()))


def versions(history: Iterable[State]) -> list[Record]:
    """How a persona came about: from which conversation on which claims hold, oldest first."""
    last = {state[-1]['conversation']: state for state in history if state}  # a conversation makes one version
    return [
        dict(since=since, at=state[-1]['said_at'], claims=[claim['id'] for claim in state])
        for since, state in last.items()
    ]


def persona(state: State, *, max_tokens: int, count: Callable[[str], int]) -> str:
    """The claims that hold in one text, the newest first, as many as fit the budget; '' for none.

    Args:
      max_tokens: of the text, as `count` counts them.
    """
    said: Sequence[str] = ()
    for claim in reversed(state):
        if count(' '.join((*said, claim['text']))) <= max_tokens:
            said = (*said, claim['text'])
    return ' '.join(said)
