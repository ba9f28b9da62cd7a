"""Turn a data card from JSON into Markdown, in which user text is always escaped or fenced."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.core.records import SPLITS

MAX_CHARACTERS = 2000  # maximum length of each text in an example; the rest is cut
MAX_LANGUAGES = 20  # rows in the language table; all other languages share one row
PERCENTILES = {'0': 'min', '10': '10 %', '25': '25 %', '50': 'median', '75': '75 %', '90': '90 %', '99': '99 %'}
PERCENTILES |= {'100': 'max'}


def escaped(text: str) -> str:
    r"""Return text from the data as one line, escaped so that nothing in it is read as Markdown or HTML.

    >>> print(escaped('<b>|`*\n# x'))
    \<b\>\|\`\* \# x
    """
    visible = ''.join(letter if letter.isprintable() else ' ' for letter in text)
    return re.sub(r'([!-+.:-@\[-`{-~])', r'\\\1', ' '.join(visible.split()))


def fenced(text: str) -> str:
    """Return text from the data as a code block, with a fence that is longer than any run of backticks in the text.

    Only the first `MAX_CHARACTERS` characters are shown. A note says how many more there are.
    """
    shown = '\n'.join(text[:MAX_CHARACTERS].splitlines())
    shown = ''.join(
        letter if letter in '\n\t' or ord(letter) >= 160 or letter.isprintable() else '�' for letter in shown
    )
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', shown)), default=0))
    cut = len(text) - MAX_CHARACTERS
    return f'{fence}text\n{shown}\n{fence}' + (f'\n\n… and {cut} more characters.' if cut > 0 else '')


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table with text in the first column and numbers in the other columns."""
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
    """Return a key as words separated by spaces, escaped for Markdown.

    >>> print(_words('no_feedback'))
    no feedback
    """
    return escaped(key.replace('_', ' '))


def _splits(by_split: Mapping[str, Any]) -> list[str]:
    """Return the names of splits in their usual order, followed by any other names."""
    return sorted(by_split, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _by_size(counts: Mapping[str, Any], size: Callable[[Any], float] = lambda value: value) -> list[tuple[str, Any]]:
    return sorted(counts.items(), key=lambda entry: (-size(entry[1]), entry[0]))


def _distributions(summaries: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return a table of distributions with their means and percentiles. Empty distributions are left out."""
    head = ['', 'number', 'mean', *PERCENTILES.values()]
    rows = [
        [name, summary['number'], summary['mean'], *map(summary['percentiles'].get, PERCENTILES)]
        for name, summary in summaries.items()
        if summary
    ]
    return table(head, rows)


def _activity(users: Mapping[str, Any], items: str) -> str:
    share = users['share_of_the_most_active']
    if share is None:
        return f'All {items} are from unknown users.'
    return (
        f'The most active 1 % of known users (at least one user) account for {_percent(share)} of the {items} from '
        f'known users. {users["without_user"]:,} {items} are from unknown users.'
    )


def _funnel(card: Mapping[str, Any]) -> list[str]:
    blocks = ['## Kept and dropped']
    for name, folder in card['funnel'].items():
        blocks.append(f'### {_words(name)}')
        if made_of := ', '.join(map(_words, card['made_of'][name])):
            blocks.append(f'Made from: {made_of}.')
        for step in folder['steps']:
            rows: list[Sequence[Any]] = [] if step['read'] is None else [('read', step['read'])]
            rows += [(_words(key), number) for key, number in step['kept'].items()]
            rows += [(f'dropped: {_words(key)}', number) for key, number in _by_size(step['dropped'])]
            if not rows:
                continue
            blocks.append(table([step['unit'], 'number'], rows))
            if step['adds_up'] is not None:
                blocks.append(
                    'The counts add up.' if step['adds_up'] else '**The counts do not add up**: make this folder again.'
                )
        if folder['others']:
            others = (f'{_words(key)} {_cell(number)}' for key, number in folder['others'].items())
            blocks.append(f'Other counts: {", ".join(others)}.')
    return blocks


def _conversations(section: Mapping[str, Any]) -> list[str]:
    columns = ('conversations', 'users', 'user_turns')
    splits = table(
        ['split', 'conversations', 'users', 'user turns'],
        (
            [_words(split), *(section['splits'][split][column] for column in columns)]
            for split in _splits(section['splits'])
        ),
    )
    distributions = {
        'user turns per conversation': section['turns_per_conversation'],
        'conversations per user': section['users']['per_user'],
    }
    return [
        splits,
        _distributions(distributions),
        _activity(section['users'], 'conversations'),
        _languages(section['languages'], section['records']),
    ]


def _languages(counts: Mapping[str, int], total: int) -> str:
    languages = _by_size(counts)
    rows = [
        [escaped(name) or 'not stated', number, _percent(number / total)] for name, number in languages[:MAX_LANGUAGES]
    ]
    if rest := languages[MAX_LANGUAGES:]:
        number = sum(number for _, number in rest)
        rows.append([f'{len(rest)} others', number, _percent(number / total)])
    return table(['language', 'conversations', 'share'], rows)


def _follow_ups(section: Mapping[str, Any]) -> list[str]:
    labels = _by_size(section['labels'], lambda label: label['turns'])
    rows = [
        [_words(name), label['turns'], _percent(label['share']), label['mean_confidence']] for name, label in labels
    ]
    mined = ', '.join(f'{section["mined"][split]:,} in {_words(split)}' for split in _splits(section['mined']))
    threshold = section['min_confidence']
    condition = '' if threshold is None else f' (confidence {threshold:g} or more)'
    return [
        table(['label', 'turns', 'share', 'mean confidence'], rows),
        f'Feedback turns for rewrites and personas{condition}: {mined or "none"}.',
    ]


def _personas(section: Mapping[str, Any]) -> list[str]:
    share = _percent(section['turns_with_persona'] / section['turns'] if section['turns'] else None)
    turns = f'{section["turns_with_persona"]:,} of {section["turns"]:,} turns that may be mined ({share})'
    words = [_distributions({'words per persona': section['words']})] if section['words'] else []
    return [f'{turns} have a persona.', *words]


def _rewrites(section: Mapping[str, Any]) -> list[str]:
    rows = ([_words(split), section['splits'][split]] for split in _splits(section['splits']))
    gain = 'gain: nats by which the feedback makes a rewrite more likely'
    return [table(['split', 'rewrites'], rows), *([_distributions({gain: section['gain']})] if section['gain'] else [])]


def _candidates(section: Mapping[str, Any]) -> list[str]:
    finished = _percent(section['share_of_replies_finished'])
    prompts = f'{section["records"]:,} prompts, {section["with_persona"]:,} of them with a persona'
    return [
        f'{prompts}. {finished} of the replies were not cut off.',
        _distributions({'replies per prompt': section['replies_per_prompt']}),
    ]


def _pairs(section: Mapping[str, Any]) -> list[str]:
    splits = _splits(section['splits'])
    by_source = _by_size(section['sources'], lambda by_split: sum(by_split.values()))
    rows = [[f'from {escaped(name)}', *(by_split.get(split, 0) for split in splits)] for name, by_split in by_source]
    for column, title in (('pairs', 'pairs'), ('users', 'known users'), ('with_persona', 'pairs with a persona')):
        rows.append([title, *(section['splits'][split][column] for split in splits)])
    blocks = [
        table(['', *map(_words, splits)], rows),
        _distributions({'pairs per user': section['users']['per_user']} | section['lengths']),
        _activity(section['users'], 'pairs'),
    ]
    if longer := section['share_of_chosen_longer']:
        blocks.append(
            f'The chosen reply is longer than the rejected one in {_percent(longer["characters"])} of the pairs, '
            f'measured in characters, and in {_percent(longer["words"])}, measured in words.'
        )
    if probe := section['probe']:
        blocks.append(_probe(probe))
    return blocks


def _probe(probe: Mapping[str, Any]) -> str:
    auc = probe['artefact_auc']
    if auc is None:
        return 'There are too few pairs to test whether the replies alone tell chosen from rejected.'
    accepted = '; this is above the limit and was accepted' if probe['accepted'] else ''
    return (
        'A classifier that sees only the replies tells chosen from rejected with an AUC of '
        f'{auc:.3f} (0.5 is chance){accepted}.'
    )


def _other(section: Mapping[str, Any]) -> list[str]:
    """Return Markdown for a section whose kind is not in `SECTIONS`: first its numbers, then its distributions."""
    numbers = [[_words(name), value] for name, value in section.items() if isinstance(value, int | float)]
    distributions = {
        _words(name): value for name, value in section.items() if isinstance(value, dict) and 'percentiles' in value
    }
    return [table(['', 'number'], numbers), *([_distributions(distributions)] if distributions else [])]


SECTIONS = dict(
    conversations=_conversations,
    follow_ups=_follow_ups,
    personas=_personas,
    rewrites=_rewrites,
    candidates=_candidates,
    pairs=_pairs,
)


def _teacher(costs: Mapping[str, Any]) -> list[str]:
    per_pair = costs['per_pair'] or {}
    rows = [
        ['tokens in prompts', costs['tokens_in'], per_pair.get('tokens_in')],
        ['tokens in answers', costs['tokens_out'], per_pair.get('tokens_out')],
        [
            'cost, in the currency of `config.teacher.price_in`',
            costs['cost_millionths'] / 1e6,
            per_pair.get('cost_millionths', 0) / 1e6,
        ],
    ]
    return ['## The teacher', table(['', 'total', f'per pair ({costs["pairs"]:,} accepted pairs)'], rows)]


def _examples(card: Mapping[str, Any]) -> list[str]:
    blocks = [
        '## Examples',
        'A few training pairs, chosen by a hash of their ids. They contain user text: do not share them.',
    ]
    for name, pairs in card['examples'].items():
        for pair in pairs:
            blocks.append(f'### {_words(name)}: {escaped(pair["id"])}')
            for part in ('persona', 'request', 'chosen', 'rejected'):
                blocks += [f'{part.capitalize()}:', fenced(pair[part])] if pair[part] else [f'No {part}.']
    return blocks


def _opening(opening: Mapping[str, Any]) -> list[str]:
    """Return the card's beginning: the loop's summary, its models and, if the loop has not finished, its progress."""
    blocks = [escaped(opening['summary'])] if opening else []
    if models := opening.get('models'):
        blocks.append(', '.join(f'{_words(name)}: {escaped(model)}' for name, model in models.items()))
    if unfinished := opening.get('unfinished'):
        where = f'part {unfinished["number"]} of {unfinished["of"]}, {escaped(unfinished["part"])}'
        why = f' ({escaped(unfinished["why"])})' if unfinished['why'] else ''
        blocks.append(
            f'**This loop has not finished.** It has reached {where}{why}. Next: {escaped(unfinished["next"])}.'
        )
    return blocks


def _claim(claim: Mapping[str, Any]) -> str:
    return f'- {escaped(claim["text"])} The user had said: "{escaped(claim["quote"])}"'


def _inputs(card: Mapping[str, Any]) -> list[str]:
    rows = [
        [f'raw data: {escaped(name)}', f'`{escaped(digest)}`']
        for section in card['sections'].values()
        for name, digest in section.get('raw', [])
    ]
    rows += [
        [f'{_words(stage)}: {file}', f'`{digest}`']
        for stage, files in card['inputs'].items()
        for file, digest in files.items()
    ]
    return ['## Files that this card describes', table(['file', 'sha256'], rows)]


def markdown(card: Mapping[str, Any]) -> str:
    """Return a data card as Markdown.

    Args:
      card: the result of `data_pipelines.card.describe`. The Markdown keeps the order of the card's sections.
    """
    blocks = [
        '# Data card',
        'Conversations between users and a language model, and preferences mined from them. The terms of the raw data '
        'apply to these data too. They contain user text: store them where only their owner can read them.',
    ]
    blocks += _opening(card['opening'])
    if not card['funnel']:
        stopped = card['opening'].get('unfinished', {}).get('why')
        blocks.append(
            'No stage has finished.' if stopped else 'Counts and examples follow when the loop ends or stops.'
        )
    if card['left_out']:
        blocks.append(f'Stages not run, or not set in the config: {", ".join(map(_words, card["left_out"]))}.')
    if card.get('claims'):
        blocks += ['## Examples of claims about users', *map(_claim, card['claims'])]
    if card['examples']:
        blocks += _examples(card)
    blocks += _funnel(card) if card['funnel'] else []
    for name, section in card['sections'].items():
        blocks += [f'## Contents of {_words(name)}', *SECTIONS.get(section['kind'], _other)(section)]
    if card['teacher']:
        blocks += _teacher(card['teacher'])
    blocks += _inputs(card) if card['inputs'] else []
    return '\n\n'.join(blocks) + '\n'
