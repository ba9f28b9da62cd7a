"""Persona scopes define which earlier turns a persona may draw on. To add a scope, add an entry to SCOPES below."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.records import Claim, Conversation, FollowUp
from data_pipelines.core.turns import exchange_number, turn_id, user_turn_indices
from data_pipelines.persona.claims import State, states
from rlhi_jax.io.errors import UserError


class Scope(NamedTuple):
    """The meaning of one value of `config.personas.scope`. The argument `settings` is always `config.personas`.

    Attributes:
      may_know: may_know(turn, settings) returns whether any persona may draw on this feedback turn.
      mined_turns: mined_turns(conversation, settings) returns the indices of the user turns that may be mined, that is,
        used to make training data.
      state_at: state_at(claims, settings) takes one author's claims, oldest first, and returns a function. Given a
        conversation and the index of a turn that may be mined, that function returns the claims valid at the turn.
      known_at: known_at(conversation, turn_index, claims, settings) returns the author's claims that a persona may draw
        on at a user turn, in any order. It returns None if the turn must not be mined. Only the store audit calls this
        function. It shares no code with `mined_turns` and `state_at`, so the audit notices an error in any of the three
        functions.
      check: check(conversations) raises a UserError if the scope cannot be used with these conversations.
    """

    may_know: Callable[[FollowUp, ConfigDict], bool]
    mined_turns: Callable[[Conversation, ConfigDict], range]
    state_at: Callable[[Sequence[Claim], ConfigDict], Callable[[Conversation, int], State]]
    known_at: Callable[[Conversation, int, Sequence[Claim], ConfigDict], list[Claim] | None]
    check: Callable[[Iterable[Conversation]], None]


def states_at_turns(
    conversations: Iterable[Conversation], claims: Sequence[Claim], settings: ConfigDict
) -> Iterator[tuple[str, State]]:
    """Yield the id of each user turn that may be mined, with the claims that are valid at that turn.

    Args:
      claims: the author's claims, oldest first.
      settings: `config.personas`.
    """
    scope = SCOPES[settings.scope]
    state_at = scope.state_at(claims, settings)
    for conversation in conversations:
        for turn_index in scope.mined_turns(conversation, settings):
            yield turn_id(conversation['id'], turn_index), state_at(conversation, turn_index)


# 'earlier_conversations': the same user's conversations that had ended when the current conversation began.


def _is_of_a_user(turn: FollowUp, settings: ConfigDict) -> bool:
    return bool(turn['user_id'])


def _all_user_turns(conversation: Conversation, settings: ConfigDict) -> range:
    return user_turn_indices(conversation['messages'])


def _state_when_it_began(claims: Sequence[Claim], settings: ConfigDict) -> Callable[[Conversation, int], State]:
    timed = [claim for claim in claims if claim['user_id'] and claim['said_at']]
    history, times = states(timed, max_claims=settings.max_claims), [claim['said_at'] for claim in timed]
    return lambda conversation, turn_index: history[bisect_left(times, conversation['began'])]


def _ended_before(
    conversation: Conversation, turn_index: int, claims: Sequence[Claim], settings: ConfigDict
) -> list[Claim]:
    """Return the claims of the same user from conversations that had ended before this conversation began."""
    user = conversation['user_id']
    return [claim for claim in claims if user and claim['said_at'] and claim['said_at'] < conversation['began']]


def _check_users_and_times(conversations: Iterable[Conversation]) -> None:
    with_follow_up = (conversation for conversation in conversations if len(conversation['messages']) > 2)
    if not any(conversation['user_id'] and conversation['began'] for conversation in with_follow_up):
        raise UserError(
            "config.personas.scope is 'earlier_conversations', but no conversation with several user turns has both a "
            "user id and a start time: set config.personas.scope to 'first_k_turns'"
        )


# 'first_k_turns': the first turns of the same conversation, for data without user ids.


def _is_of_the_first(turn: FollowUp, settings: ConfigDict) -> bool:
    # A known user's later turns are remarks too. The claims made from them are stored, but not used at any turn.
    return bool(turn['user_id']) or exchange_number(turn['turn_index']) < settings.first_k


def _turns_after_the_first(conversation: Conversation, settings: ConfigDict) -> range:
    return user_turn_indices(conversation['messages'], first=2 * settings.first_k)


def _state_after_the_first(claims: Sequence[Claim], settings: ConfigDict) -> Callable[[Conversation, int], State]:
    first: dict[str, list[Claim]] = {}
    for claim in claims:
        if exchange_number(claim['turn_index']) < settings.first_k:
            first.setdefault(claim['conversation'], []).append(claim)
    known = {conversation: states(group, max_claims=settings.max_claims)[-1] for conversation, group in first.items()}
    return lambda conversation, turn_index: known.get(conversation['id'], ())


def _among_the_first(
    conversation: Conversation, turn_index: int, claims: Sequence[Claim], settings: ConfigDict
) -> list[Claim] | None:
    """Return the claims from the conversation's first `first_k` user turns, or None if this turn is one of them.

    The first `first_k` user turns must not be mined.
    """
    if turn_index // 2 < settings.first_k:
        return None
    of_this = [claim for claim in claims if claim['conversation'] == conversation['id']]
    return [claim for claim in of_this if claim['turn_index'] // 2 < settings.first_k]


def _accept_all(conversations: Iterable[Conversation]) -> None:
    pass


SCOPES = {
    'earlier_conversations': Scope(
        may_know=_is_of_a_user,
        mined_turns=_all_user_turns,
        state_at=_state_when_it_began,
        known_at=_ended_before,
        check=_check_users_and_times,
    ),
    'first_k_turns': Scope(
        may_know=_is_of_the_first,
        mined_turns=_turns_after_the_first,
        state_at=_state_after_the_first,
        known_at=_among_the_first,
        check=_accept_all,
    ),
}
