"""Reads preferences in published layouts, and turns each into a prompt with a chosen and a rejected reply.

A layout is recognized by its keys:

- In the layouts in `_COMPARISONS`, a record contains two replies and names the better one.
- In the layouts in `_RATINGS`, a record contains one or more rated replies. The best-rated reply to a prompt is
  preferred to the worst-rated one.
- In all other layouts, a record contains a chosen and a rejected reply.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.core.turns import kind_of
from data_pipelines.raw.messages import (
    NAMES,
    Messages,
    involves_tool,
    message_list,
    read_messages,
    system_text,
    without_greeting,
)
from rlhi_jax.data.tree import MAX_MARGIN, MAX_WEIGHT, BadRecord, Preference

_SIDES = ('chosen', 'rejected')
_PROMPTS = ('prompt', 'conversations', 'question', 'instruction', 'context')
_KINDS = ('subset', 'category')  # as in RewardBench and MT-Bench
_SYSTEMS = ('system', 'system_prompt')
_SCORES = (
    ('score_chosen', 'score_rejected'),
    ('chosen_score', 'rejected_score'),
    ('chosen-rating', 'rejected-rating'),
    ('chosen_rating', 'rejected_rating'),
)


class Rated(NamedTuple):
    """A rated reply to a prompt. The best-rated and the worst-rated replies to a prompt form a preference.

    Attributes:
      prompt: the fields of the record that describe the prompt and its author.
      reply: the reply, in any form that a record may contain.
      rating: a number that is higher for better replies.
      id: the record's id; None if the record states none.
      liked: whether the user liked the reply; None if the rating does not say.
      follow_up: the user's next turn; None if it is not known.
    """

    prompt: dict[str, Any]
    reply: Any
    rating: float
    id: Any = None
    liked: bool | None = None
    follow_up: Any = None


def _signed(strength: Any) -> float:
    """Return the strength of a preference, which must be a number. If it is above 0, the second reply is better."""
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise BadRecord('comparison_without_a_winner')
    return strength


def _named(second: str, first: str) -> Callable[[Any], float]:
    def better(winner: Any) -> float:
        strength = {second: 1, first: -1}.get(str(winner), 0)
        if not strength and not str(winner).startswith('tie'):  # Chatbot Arena also has 'tie (bothbad)'
            raise BadRecord('comparison_without_a_winner')
        return strength

    return better


# Keys of the prompt, the first reply, the second reply and the winner; and a function that maps the winner to a number,
# which is above 0 if the second reply is better.
_COMPARISONS: tuple[tuple[tuple[str, str, str, str], Callable[[Any], float]], ...] = (
    (('prompt', 'response_1', 'response_2', 'preference_strength'), _signed),  # HelpSteer2
    (('context', 'response1', 'response2', 'overall_preference'), _signed),  # HelpSteer3
    (('prompt', 'response_0', 'response_1', 'better_response_id'), _named('1', '0')),  # PKU-SafeRLHF
    (('history', 'human_ref_A', 'human_ref_B', 'labels'), _named('0', '1')),  # SHP
    (('', 'conversation_a', 'conversation_b', 'winner'), _named('model_b', 'model_a')),  # Chatbot Arena
)

# Keys of the prompt and of the list of rated replies ('' if the record itself is the rated reply), and the keys of the
# reply and its rating in each item.
_RATINGS = (
    ('prompt', '', 'completion', 'label'),  # KTO
    ('prompt', '', 'response', 'helpfulness'),  # HelpSteer
    ('instruction', 'completions', 'response', 'overall_score'),  # UltraFeedback
    ('prompt', 'answers', 'answer', 'rank'),  # Nectar
)
_LOWER_IS_BETTER = ('rank',)


def parse_preferences(record: Any, default_id: str, counts: Counter) -> list[Preference | Rated]:
    """Return the preferences or the rated replies in one record of any layout.

    Args:
      record: any value that JSON or parquet can represent.
      default_id: the preference's id if the record states none. If a record contains several preferences, a number is
        appended to the id of each.
      counts: receives the numbers of items in the record that are left out, such as tools.

    Raises:
      BadRecord: the record cannot be used. The exception contains the reason under which to count the record.
    """
    if not isinstance(record, dict):
        raise BadRecord('not_an_object')
    if any(record.get(key) for key in ('images', 'image', 'videos')):
        raise BadRecord('has_images')
    if record.get('tools'):
        counts['tools_left_out'] += 1
    for (prompt, *replies, winner), better in _COMPARISONS:
        if all(record.get(key) is not None for key in (*filter(None, (prompt,)), *replies, winner)):
            strength = better(record[winner])
            first, second = (record[key] for key in replies)
            sides = dict(prompt=record.get(prompt), chosen=second, rejected=first)
            record = record | (sides if strength > 0 else _swapped(sides))
            return [_preference(record, default_id, counts, tied=not strength)]
    for prompt, inside, reply, rating in _RATINGS:
        if record.get(prompt) is not None and record.get(inside or reply) is not None and 'chosen' not in record:
            if not inside and rating not in record:
                continue
            rated = record[inside] if inside else [record]
            return [_rated(record, record[prompt], each, reply, rating) for each in rated]
    record = _as_trl(record)
    if not {'chosen', 'rejected'} <= record.keys():
        raise BadRecord('chosen_or_rejected_missing')
    lists = [record[side] if _strings(record[side]) else [record[side]] for side in ('chosen', 'rejected')]
    pairs = [(chosen, rejected) for chosen in lists[0] for rejected in lists[1]]
    return [
        _preference(
            record | dict(chosen=chosen, rejected=rejected),
            default_id,
            counts,
            suffix=f' {number}' if len(pairs) > 1 else '',
        )
        for number, (chosen, rejected) in enumerate(pairs, start=1)
    ]


def _swapped(sides: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sides, chosen=sides['rejected'], rejected=sides['chosen'])


def _strings(value: Any) -> bool:
    """Whether a record's chosen or rejected field is a list of alternative replies, as in RewardBench 2."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _rated(record: Mapping[str, Any], prompt: Any, rated: Any, reply: str, rating: str) -> Rated:
    value = rated.get(rating) if isinstance(rated, dict) else None
    if not isinstance(value, bool | int | float) or value != value or rated.get(reply) is None:
        raise BadRecord('rating_is_not_a_number')
    prompt = {**{key: record.get(key) for key in (*_SYSTEMS, 'persona', 'user_id')}, 'prompt': prompt}
    return Rated(
        prompt,
        rated[reply],
        -float(value) if rating in _LOWER_IS_BETTER else float(value),
        id=record.get('id'),
        liked=bool(value) if rating == 'label' and value in (0, 1) else None,
        follow_up=record.get('follow_up'),
    )


def rated_preference(best: Rated, worst: Rated, default_id: str, counts: Counter) -> Preference:
    """Return the preference for a prompt's best-rated reply over its worst-rated reply.

    Raises:
      BadRecord: the replies are identical, or the prompt or a reply cannot be used.
    """
    if best.reply == worst.reply:
        raise BadRecord('prompt_with_one_rated_reply')
    sides = dict(best.prompt, chosen=best.reply, rejected=worst.reply)
    return _preference(sides, default_id, counts, tied=best.rating == worst.rating)


def one_sided_preference(rated: Rated, default_id: str, counts: Counter) -> Preference:
    """Return a preference with only one reply: the chosen one if the user liked the reply, or else the rejected one.

    Raises:
      BadRecord: the rating does not say whether the user liked the reply, or the prompt or reply cannot be used.
    """
    if rated.liked is None:
        raise BadRecord('rating_is_not_a_label')
    side = 'chosen' if rated.liked else 'rejected'
    return _preference(dict(rated.prompt, id=rated.id) | {side: rated.reply}, default_id, counts, sides=(side,))


def _as_trl(record: dict[str, Any]) -> dict[str, Any]:
    """Copy a record's prompt and replies to the keys `prompt`, `chosen` and `rejected` if they are under other keys."""
    if isinstance(record.get('input'), dict) and 'preferred_output' in record:  # OpenAI
        return record | dict(
            prompt=record['input'].get('messages'),
            chosen=record['preferred_output'],
            rejected=record.get('non_preferred_output'),
        )
    if 'response_j' in record and 'response_k' in record:  # pairs from Stack Exchange
        return record | dict(chosen=record['response_j'], rejected=record['response_k'])
    if 'instruction' in record and isinstance(record.get('input'), str) and record['input'].strip():  # Alpaca
        return record | dict(instruction=f'{record["instruction"]}\n\n{record["input"]}')
    return record


def _preference(
    record: Mapping[str, Any],
    default_id: str,
    counts: Counter,
    suffix: str = '',
    sides: Sequence[str] = _SIDES,
    *,
    tied: bool = False,
) -> Preference:
    """Check a record that has a reply under each key in `sides`, and return its preference.

    The preference is a tie if `tied` is set or the record states equal scores.
    """
    replies = {side: _messages(record[side], 'assistant', counts) for side in sides}
    opening = next((record[key] for key in _PROMPTS if record.get(key) is not None), None)
    prompt = Messages((), ()) if opening is None else _messages(opening, 'user', counts)
    prompt = _history(record.get('history'), prompt)
    whole = all(reply.turns and reply.turns[0].role == 'user' for reply in replies.values())
    if len(replies) == 2 and (opening is None or whole):
        shared = _shared_opening(*replies.values())  # both sides are whole conversations
        if not shared.turns:
            raise BadRecord('no_prompt')
        if _texts(shared)[: len(prompt.turns)] != _texts(prompt):
            raise BadRecord('prompt_and_replies_disagree')
        for side, reply in replies.items():
            replies[side] = reply._replace(turns=reply.turns[len(shared.turns) :])
        prompt = Messages(shared.system or prompt.system, shared.turns)
    turns = without_greeting(prompt.turns, counts)
    _check_roles(turns, replies.values())
    chosen, rejected = (_texts(replies[side]) if side in replies else () for side in _SIDES)
    if chosen == rejected:
        raise BadRecord('chosen_equals_rejected')
    tied |= _equal_scores(record)
    texts = {name: _text(record, name) for name in ('id', 'persona', 'user_id')}
    kinds = [record[key] for key in _KINDS if isinstance(record.get(key), str)]
    return Preference(
        id=(texts['id'] or default_id) + suffix,
        prompt=tuple((turn.role, turn.text) for turn in turns),
        chosen=chosen,
        rejected=rejected,
        system=_system(record, prompt),
        persona=texts['persona'],
        user_id=texts['user_id'],
        weight=_number(record, 'weight', 1.0, MAX_WEIGHT),
        margin=_number(record, 'margin', 0.0, MAX_MARGIN),
        tied=tied,
        kind=_plain(kinds[0]) if kinds else kind_of(texts['id']),
    )


def _messages(value: Any, role: str, counts: Counter) -> Messages:
    """Read a prompt or a reply from a transcript, a message, a list of messages, or plain text in the role `role`."""
    if isinstance(value, dict):
        value = [value]
    raw = message_list(value)
    if raw is None and isinstance(value, str):
        raw = transcript(value) or [{'role': role, 'content': value}]
    if raw is None or not all(isinstance(message, dict) for message in raw):
        raise BadRecord('turns_not_a_list_of_messages')
    if role == 'assistant' and raw and involves_tool(raw[-1], NAMES):
        raise BadRecord('reply_calls_tools')
    return read_messages(raw, NAMES, counts)


# Formats that write a whole conversation as one string: how the string begins, and what opens each turn.
_TRANSCRIPTS = (
    (re.compile(r'\A\n*(?:Human|Assistant):'), re.compile(r'(?:^|\n\n)(Human|Assistant):')),  # hh-rlhf
    (re.compile(r'\A\s*### ?(?:Human|User|Assistant|System):'), re.compile(r'### ?(Human|User|Assistant|System):')),
    (re.compile(r'\A\s*<\|im_start\|>\w'), re.compile(r'<\|im_start\|>(\w+)\n')),
)


def transcript(text: str) -> list[dict[str, str]]:
    """Return the messages of a conversation that is written as one string; [] for any other string.

    A string counts as a conversation only if it begins with a speaker's name. It must also name a speaker a second
    time, or begin with two line breaks, as in hh-rlhf.

    >>> transcript('\\n\\nHuman: Hi\\n\\nAssistant: Hello')
    [{'role': 'human', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    >>> transcript('Human: a word with five letters')
    []
    """
    for beginning, speaker in _TRANSCRIPTS:
        marks = list(speaker.finditer(text)) if beginning.match(text) else []
        if len(marks) > 1 or (marks and text.startswith('\n\n')):
            ends = [*(mark.start() for mark in marks[1:]), len(text)]
            turns = [
                dict(role=mark[1].lower(), content=_without_end(text[mark.end() : end]))
                for mark, end in zip(marks, ends, strict=True)
            ]
            return turns[:-1] if len(turns) > 1 and not turns[-1]['content'] else turns  # without an empty last turn
    return []


def _without_end(text: str) -> str:
    return text.removesuffix('<|im_end|>\n').strip().removesuffix('<|im_end|>').strip()


def _shared_opening(chosen: Messages, rejected: Messages) -> Messages:
    """Return the turns with which both conversations begin, but never the last turn of either conversation."""
    shared, ours, theirs = 0, _texts(chosen), _texts(rejected)
    while shared < min(len(ours), len(theirs)) - 1 and ours[shared] == theirs[shared]:
        shared += 1
    return chosen._replace(turns=chosen.turns[:shared])


def _history(history: Any, prompt: Messages) -> Messages:
    """Return the prompt, preceded by the exchanges in `history`, a field of Alpaca's layout."""
    if not isinstance(history, list) or not history:
        return prompt
    if not all(isinstance(each, list) and len(each) == 2 for each in history):
        raise BadRecord('history_is_not_pairs_of_texts')
    raw = [
        dict(role=role, content=text)
        for each in history
        for role, text in zip(('user', 'assistant'), each, strict=True)
    ]
    return prompt._replace(turns=read_messages(raw, NAMES, Counter()).turns + prompt.turns)


def _texts(messages: Messages) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.text) for turn in messages.turns)


def _check_roles(prompt: tuple, replies: Iterable[Messages]) -> None:
    if not prompt or prompt[-1].role != 'user':
        raise BadRecord('prompt_does_not_end_in_a_user_turn')
    for reply in replies:
        if not reply.turns or reply.turns[-1].role != 'assistant':
            raise BadRecord('reply_does_not_end_in_an_assistant_turn')
        if reply.turns[0].role != 'assistant':
            raise BadRecord('prompt_and_replies_disagree')
    if not all(turn.text for turn in (*prompt, *(turn for reply in replies for turn in reply.turns))):
        raise BadRecord('empty_message')


def _equal_scores(record: Mapping[str, Any]) -> bool:
    """Return whether the record gives both replies the same score. The rejected reply's score must not be higher."""
    tied = False
    for names in _SCORES:
        better, worse = (record.get(name) for name in names)
        if isinstance(better, int | float) and isinstance(worse, int | float):
            if better < worse:
                raise BadRecord('chosen_has_the_lower_score')
            tied |= better == worse
    return tied


def _system(record: Mapping[str, Any], prompt: Messages) -> str:
    """Join the distinct system texts of the record and its prompt with blank lines."""
    stated = [record[key] for key in _SYSTEMS if record.get(key) is not None]
    if not all(isinstance(text, str) for text in stated):
        raise BadRecord('system_not_text')
    return system_text(*map(_plain, stated), *prompt.system)


def _number(record: Mapping[str, Any], name: str, default: float, most: float) -> float:
    """Return the number in an optional field, or `default` if it is missing. The number must be from 0 to `most`."""
    number = default if record.get(name) is None else record[name]
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
        raise BadRecord(f'{name}_not_a_number_from_0')
    return float(number)


def _text(record: Mapping[str, Any], name: str) -> str:
    """Return the text of an optional field, or '' if it is missing; ids may be whole numbers."""
    text = record.get(name)
    if isinstance(text, int) and not isinstance(text, bool) and name != 'persona':
        text = str(text)
    if text is not None and not isinstance(text, str):
        raise BadRecord(f'{name}_not_text')
    return _plain(text or '')


def _plain(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecord('lone_surrogate') from None
    return text.strip()
