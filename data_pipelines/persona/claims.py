"""Combines claims about what a user likes into a persona.

The claims are read oldest first. A later claim replaces the earlier claims that it contradicts or makes redundant. The
persona at any time can therefore be computed from only the claims made up to that time. The claims that remain, at
most the newest `config.personas.max_claims`, are called valid.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from data_pipelines.core.records import Claim, PersonaVersion
from data_pipelines.persona.audit import MAX_CHARACTERS
from data_pipelines.text.styles import stems, styles

SAME = 0.5  # minimum Jaccard similarity of the word stems of two claims that say the same, if neither is about style

State = tuple[Claim, ...]  # the claims that are valid at some point in time, oldest first


def quote_of(turn: str) -> str:
    """Return the quote for a claim: a user turn, truncated to at most MAX_CHARACTERS, between words if possible.

    >>> len(quote_of('word ' * 100)), quote_of(' Shorter. ')
    (199, 'Shorter.')
    """
    turn = turn.strip()
    if len(turn) <= MAX_CHARACTERS:
        return turn
    opening = turn[: MAX_CHARACTERS + 1]
    return (opening.rsplit(maxsplit=1)[0] if any(map(str.isspace, opening)) else opening)[:MAX_CHARACTERS].strip()


def oldest_first(claims: Iterable[Claim]) -> list[Claim]:
    """Sort an author's claims by time.

    Claims with the same time keep their order, so pass them in conversation and turn order.
    """
    return sorted(claims, key=lambda claim: claim['said_at'])


def replaces(newer: str, older: str) -> bool:
    """Whether a newer claim contradicts an older claim or makes it redundant.

    An older claim about style is redundant if the newer claim takes the same side on every matter of style in it. Any
    other claim is redundant if the newer claim is identical or, being not about style either, has similar words.

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
    """Whether two claims take different sides on a matter of style."""
    styles_of_one = styles(one)
    return any(styles_of_one.get(matter, side) != side for matter, side in styles(other).items())


def step(state: State, claim: Claim, *, max_claims: int) -> State:
    """Return the valid claims after a new claim is added.

    The claims that the new claim replaces are removed. Of the rest, at most the newest `max_claims` are kept.
    """
    return (*(older for older in state if not replaces(claim['text'], older['text'])), claim)[-max_claims:]


def states(claims: Iterable[Claim], *, max_claims: int) -> list[State]:
    """Return the claims that are valid at each step: first the empty state, then the state after each of `claims`.

    The argument `claims` must be ordered oldest first.
    """
    return list(accumulate(claims, lambda state, claim: step(state, claim, max_claims=max_claims), initial=()))


def versions(history: Iterable[State]) -> list[PersonaVersion]:
    """Return a persona's versions, oldest first: one for each conversation that added a claim."""
    last = {state[-1]['conversation']: state for state in history if state}
    return [
        PersonaVersion(since=conversation, at=state[-1]['said_at'], claims=[claim['id'] for claim in state])
        for conversation, state in last.items()
    ]


def persona(texts: Sequence[str], *, max_tokens: int, count: Callable[[str], int]) -> str:
    """Join valid claims into one text of at most `max_tokens` tokens, newest first; return '' if no claim fits.

    A claim that does not fit is skipped, and older claims are still tried.

    Args:
      texts: the texts of the valid claims, oldest first.
      max_tokens: maximum number of tokens in the persona.
      count: counts the tokens in a text.
    """
    chosen: list[str] = []
    for text in reversed(texts):
        if count(' '.join([*chosen, text])) <= max_tokens:
            chosen.append(text)
    return ' '.join(chosen)
