"""A data card as JSON holds it → Markdown to read, which no text of a user can break out of."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 2000  # of a text among the examples
MAX_LANGUAGES = 20
SPLITS = ('train', 'heldout', 'test')
PERCENTILES = {'0': 'least', '10': '10 %', '25': '25 %', '50': 'median', '75': '75 %', '90': '90 %', '99': '99 %'}
PERCENTILES |= {'100': 'most'}


def escaped(text: str) -> str:
    r"""Foreign text as plain words of one line: nothing in it is Markdown or HTML.

    >>> print(escaped('<b>|`*\n# x'))
    \<b\>\|\`\* \# x
    """
    visible = ''.join(letter if letter.isprintable() else ' ' for letter in text)
    return re.sub(r'([!-+.:-@\[-`{-~])', r'\\\1', ' '.join(visible.split()))


def fenced(text: str) -> str:
    """Foreign text as a block of code, whatever it holds: the fence is longer than any run of backticks in it."""
    shown = '\n'.join(text[:MAX_CHARACTERS].splitlines())
    shown = ''.join(
        letter if letter in '\n\t' or ord(letter) >= 160 or letter.isprintable() else '�' for letter in shown
    )
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', shown)), default=0))
    cut = len(text) - MAX_CHARACTERS
    return f'{fence}text\n{shown}\n{fence}' + (f'\n\n… and {cut} characters more.' if cut > 0 else '')


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ['---', *['--:'] * (len(head) - 1)], *([_cell(value) for value in row] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.4g}' if abs(value) < 1000 else f'{value:,.0f}'
    return f'{value:,}' if isinstance(value, int) else value


def _percent(share: float | None) -> str:
    return '–' if share is None else f'{100 * share:.1f} %'


def _words(key: str) -> str:
    """A key as words: `dropped_no_feedback` is `dropped no feedback`."""
    return escaped(key.replace('_', ' '))


def _splits(found: Mapping[str, Any]) -> list[str]:
    """Splits in their order, those of other names last."""
    return sorted(found, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _by_size(counts: Mapping[str, Any], key=lambda value: value) -> list[tuple[str, Any]]:
    return sorted(counts.items(), key=lambda entry: (-key(entry[1]), entry[0]))


def _distributions(rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A table of summaries, each with its mean and percentiles."""
    head = ['', 'number', 'mean', *PERCENTILES.values()]
    shown = {name: summary for name, summary in rows.items() if summary}
    return table(
        head, ([name, s['number'], s['mean'], *map(s['percentiles'].get, PERCENTILES)] for name, s in shown.items())
    )


def _activity(users: Mapping[str, Any], what: str) -> str:
    if users['share_of_the_most_active'] is None:
        return f'No user is known of any of the {what}.'
    share = _percent(users['share_of_the_most_active'])
    said = f'The most active 1 % of known users (at least one) have {share} of their {what}'
    return f'{said}; {users["without_user"]:,} {what} are of no known user.'


def _funnel(card: Mapping[str, Any]) -> list[str]:
    blocks = ['## What was kept and dropped']
    for name, stage in card['funnel'].items():
        blocks.append(f'### {_words(name)}')
        made_of = ', '.join(map(_words, card['made_of'][name]))
        if made_of:
            blocks.append(f'Made of: {made_of}.')
        for step in stage['steps']:
            rows: list[Sequence[Any]] = [] if step['read'] is None else [('read', step['read'])]
            rows += [(_words(key), number) for key, number in step['kept'].items()]
            rows += [(f'dropped: {_words(key)}', number) for key, number in _by_size(step['dropped'])]
            if not rows:
                continue
            blocks.append(table([step['unit'], 'number'], rows))
            if step['adds_up'] is not None:
                blocks.append('Adds up.' if step['adds_up'] else '**Does not add up**: make this folder again.')
        if stage['others']:
            told = (f'{_words(key)} {_cell(number)}' for key, number in stage['others'].items())
            blocks.append(f'Also counted: {", ".join(told)}.')
    return blocks


def _conversations(found: Mapping[str, Any]) -> list[str]:
    columns = ('conversations', 'users', 'user_turns')
    splits = table(
        ['split', 'conversations', 'users', 'user turns'],
        (
            [_words(split), *(found['splits'][split][column] for column in columns)]
            for split in _splits(found['splits'])
        ),
    )
    distributions = {
        'user turns of a conversation': found['turns_per_conversation'],
        'conversations of a user': found['users']['per_user'],
    }
    languages = _by_size(found['languages'])
    rows = [[escaped(name) or 'not said', n, _percent(n / found['records'])] for name, n in languages[:MAX_LANGUAGES]]
    if rest := languages[MAX_LANGUAGES:]:
        number = sum(n for _, n in rest)
        rows.append([f'{len(rest)} others', number, _percent(number / found['records'])])
    activity = _activity(found['users'], 'conversations')
    return [splits, _distributions(distributions), activity, table(['language', 'conversations', 'share'], rows)]


def _follow_ups(found: Mapping[str, Any]) -> list[str]:
    labels = _by_size(found['labels'], lambda own: own['turns'])
    rows = [[_words(name), own['turns'], _percent(own['share']), own['mean_confidence']] for name, own in labels]
    mined = ', '.join(f'{found["mined"][split]:,} in {_words(split)}' for split in _splits(found['mined']))
    threshold = found['min_confidence']
    at = '' if threshold is None else f', at a confidence of at least {threshold:g}'
    return [
        table(['label', 'turns', 'share', 'mean confidence'], rows),
        f'Feedback that is mined for rewrites and personas{at}: {mined or "none"}.',
    ]


def _personas(found: Mapping[str, Any]) -> list[str]:
    share = _percent(found['turns_with_persona'] / found['turns'] if found['turns'] else None)
    said = f'{found["turns_with_persona"]:,} of {found["turns"]:,} turns that may be mined ({share}) have a persona.'
    return [said, *([_distributions({'words of a persona': found['words']})] if found['words'] else [])]


def _rewrites(found: Mapping[str, Any]) -> list[str]:
    rows = ([_words(split), found['splits'][split]] for split in _splits(found['splits']))
    gain = {'nats by which the feedback makes the rewrite likelier than mere dislike does': found['gain']}
    return [table(['split', 'rewrites'], rows), *([_distributions(gain)] if found['gain'] else [])]


def _candidates(found: Mapping[str, Any]) -> list[str]:
    finished = _percent(found['share_of_replies_finished'])
    said = f'{found["records"]:,} prompts, {found["with_persona"]:,} with a persona; {finished} of replies finished.'
    return [said, _distributions({'replies to a prompt': found['replies_per_prompt']})]


def _pairs(found: Mapping[str, Any]) -> list[str]:
    splits = _splits(found['splits'])
    rows = [[f'from {escaped(name)}', *(own.get(split, 0) for split in splits)] for name, own in _by_source(found)]
    for column, said in (('pairs', 'pairs'), ('users', 'known users'), ('with_persona', 'pairs with a persona')):
        rows.append([said, *(found['splits'][split][column] for split in splits)])
    longer = found['share_of_chosen_longer']
    blocks = [
        table(['', *map(_words, splits)], rows),
        _distributions({'pairs of a user': found['users']['per_user']} | found['lengths']),
        _activity(found['users'], 'pairs'),
    ]
    if longer:
        blocks.append(
            f'Chosen is longer than rejected in {_percent(longer["characters"])} of the pairs by characters, in '
            f'{_percent(longer["words"])} by words.'
        )
    if probe := found['probe']:
        auc = probe['artefact_auc']
        told = 'too few pairs to tell' if auc is None else f'an AUC of {auc:.3f}, where 0.5 is chance'
        accepted = '; above the limit, and accepted' if probe['accepted'] else ''
        blocks.append(f'A classifier that sees the replies alone tells chosen from rejected: {told}{accepted}.')
    return blocks


def _by_source(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return _by_size(found['sources'], lambda own: sum(own.values()))


SECTIONS = dict(
    conversations=_conversations,
    follow_ups=_follow_ups,
    personas=_personas,
    rewrites=_rewrites,
    candidates=_candidates,
    pairs=_pairs,
)


def _teacher(found: Mapping[str, Any]) -> list[str]:
    per_pair = found['per_pair'] or {}
    rows = [
        ['tokens of prompts', found['tokens_in'], per_pair.get('tokens_in')],
        ['tokens of answers', found['tokens_out'], per_pair.get('tokens_out')],
        [
            'cost, in the currency of its prices',
            found['cost_millionths'] / 1e6,
            per_pair.get('cost_millionths', 0) / 1e6,
        ],
    ]
    return ['## The teacher', table(['', 'in all', f'for each of {found["pairs"]:,} accepted pairs'], rows)]


def _examples(card: Mapping[str, Any]) -> list[str]:
    blocks = [
        '## Examples',
        "The first training pairs by hash of their id. These are users' own texts: not to be passed on.",
    ]
    for name, pairs in card['examples'].items():
        for pair in pairs:
            blocks.append(f'### {_words(name)}: {escaped(pair["id"])}')
            for part in ('persona', 'request', 'chosen', 'rejected'):
                blocks += [f'{part.capitalize()}:', fenced(pair[part])] if pair[part] else [f'No {part}.']
    return blocks


def _inputs(card: Mapping[str, Any]) -> list[str]:
    rows = [
        [f'raw data: {escaped(name)}', f'`{escaped(digest)}`']
        for own in card['sections'].values()
        for name, digest in own.get('raw', [])
    ]
    rows += [
        [f'{_words(stage)}: {file}', f'`{digest}`']
        for stage, files in card['inputs'].items()
        for file, digest in files.items()
    ]
    return ['## What this is a card of', table(['file', 'sha256'], rows)]


def markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown: what `data_pipelines.card.describe` found, in the order of stages."""
    blocks = [
        '# Data card',
        'Conversations of users with a language model, and preferences mined from them. The data inherit the terms of '
        'the raw data. They are what people wrote: keep them where only their keeper can read them.',
    ]
    if card['left_out']:
        blocks.append(f'Left out, for it was not run or is not named: {", ".join(map(_words, card["left_out"]))}.')
    blocks += _inputs(card) + _funnel(card)
    for name, found in card['sections'].items():
        blocks += [f'## What is in {_words(name)}', *SECTIONS[found['kind']](found)]
    if card['teacher']:
        blocks += _teacher(card['teacher'])
    if card['examples']:
        blocks += _examples(card)
    return '\n\n'.join(blocks) + '\n'
