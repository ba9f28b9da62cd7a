"""Claims about what a user likes, and the fold that turns them into a persona.

The fold takes claims oldest first, and a later claim replaces earlier ones that it contradicts or covers. So a persona
can be computed for any time, from the claims up to that time alone.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from data_pipelines.core.records import Claim, PersonaVersion
from data_pipelines.persona.audit import MAX_CHARACTERS
from data_pipelines.text.styles import stems, styles

SAME = 0.5  # shared stems (Jaccard) from which two claims say the same, if neither is about a matter of style

State = tuple[Claim, ...]  # claims that hold at a time, oldest first


def quote_of(turn: str) -> str:
    """The opening of a user's turn that a claim is made from, cut between words where it is too long.

    >>> len(quote_of('word ' * 100)), quote_of(' Shorter. ')
    (199, 'Shorter.')
    """
    turn = turn.strip()
    if len(turn) <= MAX_CHARACTERS:
        return turn
    opening = turn[: MAX_CHARACTERS + 1]
    return (opening.rsplit(maxsplit=1)[0] if any(map(str.isspace, opening)) else opening)[:MAX_CHARACTERS].strip()


def oldest_first(claims: Iterable[Claim]) -> list[Claim]:
    """An author's claims, given in the order of their conversations and turns, by time.

    Claims of the same time keep their order.
    """
    return sorted(claims, key=lambda claim: claim['said_at'])


def replaces(newer: str, older: str) -> bool:
    """Whether a newer claim takes the place of an older one, because it contradicts or covers it.

    >>> replaces('I like long answers.', 'I like short answers.'), replaces('I like lists.', 'I like short answers.')
    (True, False)
    """
    if contradicts(newer, older):
        return True
    newer_styles, older_styles = styles(newer), styles(older)
    if older_styles:
        return older_styles.items() <= newer_styles.items()
    newer_stems, older_stems = stems(newer), stems(older)
    shared, either = len(newer_stems & older_stems), len(newer_stems | older_stems)
    return newer == older or (not newer_styles and shared >= SAME * either > 0)


def contradicts(one: str, other: str) -> bool:
    """Whether two claims take different sides in a matter of style."""
    styles_of_one = styles(one)
    return any(styles_of_one.get(matter, side) != side for matter, side in styles(other).items())


def step(state: State, claim: Claim, *, max_claims: int) -> State:
    """The newest claims that hold once a claim is added: those that it does not replace, and itself."""
    return (*(older for older in state if not replaces(claim['text'], older['text'])), claim)[-max_claims:]


def states(claims: Iterable[Claim], *, max_claims: int) -> list[State]:
    """The claims that hold before the first of `claims`, which come oldest first, and after each of them."""
    return list(accumulate(claims, lambda state, claim: step(state, claim, max_claims=max_claims), initial=()))


def versions(history: Iterable[State]) -> list[PersonaVersion]:
    """A persona's versions, oldest first: one for each conversation that changed which claims hold."""
    last = {state[-1]['conversation']: state for state in history if state}
    return [
        PersonaVersion(since=conversation, at=state[-1]['said_at'], claims=[claim['id'] for claim in state])
        for conversation, state in last.items()
    ]


def persona(texts: Sequence[str], *, max_tokens: int, count: Callable[[str], int]) -> str:
    """The claims that hold as one text, newest first, as many as fit the budget; '' for none.

    A claim that does not fit is skipped, and older ones are still tried.

    Args:
      texts: of the claims, oldest first.
      max_tokens: most tokens of the persona.
      count: counts the tokens of a text.
    """
    chosen: list[str] = []
    for text in reversed(texts):
        if count(' '.join([*chosen, text])) <= max_tokens:
            chosen.append(text)
    return ' '.join(chosen)
