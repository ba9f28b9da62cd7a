"""Ids of records: a turn is CONVERSATION/PLACE, a pair is TURN and, after a blank, how it came about.

Ids of conversations are the data's own and may hold anything, slashes too: the others are read from their ends.
"""

REWRITE, BEST_WORST = 'rewrite', 'best/worst'  # how pairs come about


def conversation_of(turn: str) -> str:
    """The conversation that a turn is of.

    >>> conversation_of('c/2/4')
    'c/2'
    """
    return turn.rsplit('/', 1)[0]


def pair_id(turn: str, kind: str) -> str:
    return f'{turn} {kind}'


def turn_of(name: str) -> str:
    """The turn that a pair is of; any other name as it is.

    >>> turn_of('c/2 best/worst'), turn_of('c/2')
    ('c/2', 'c/2')
    """
    turn, _, kind = name.rpartition(' ')
    return turn if kind in (REWRITE, BEST_WORST) else name
