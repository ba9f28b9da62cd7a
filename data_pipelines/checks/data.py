"""Checks the raw data: which fields were found, and whether users, times and roles suit the loop's settings."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.checks.findings import Findings
from data_pipelines.checks.held_out import assign, check_held_out
from data_pipelines.checks.sample import Sample, read_sample
from data_pipelines.core.records import Conversation
from data_pipelines.persona.scopes import SCOPES
from data_pipelines.raw.formats import RawConversation
from data_pipelines.raw.scan import Rules
from rlhi_jax.io.errors import UserError

_SHOWN = 160  # characters to print of a message


def check_data(config: ConfigDict, files: Sequence[Path], rules: Rules, findings: Findings) -> Sample:
    """Read a sample of the raw records, check it, and return it. Facts and problems are added to the findings.

    Raises:
      UserError: a file cannot be read.
    """
    sample = read_sample(files, rules)
    extent = 'all records' if sample.whole else f'a sample of about {sample.total:,} records'
    findings.fact(f'Data: {sample.counts["records_read"]:,} records read ({extent}) in {len(files):,} files.')
    _fields(sample, findings)
    _dropped(config, sample, findings)
    if sample.conversations:
        _shown(sample, findings)
        _users(sample, findings)
        check_held_out(config, sample, assign(config, sample, files, rules), findings)
        _times(config, sample, findings)
    return sample


def _fields(sample: Sample, findings: Findings) -> None:
    read = sample.counts['records_read']
    for name, paths in sample.found.items():
        places = ', '.join(f'{path} ({number / read:.0%})' for path, number in paths.most_common())
        findings.fact(f'  {name}: {places}')


def _dropped(config: ConfigDict, sample: Sample, findings: Findings) -> None:
    """Add to the findings how many records would be dropped, for each reason.

    Also add a problem if there are no records, if most would be dropped, or if the config lacks a role or the path of
    the messages.
    """
    read, fields = sample.counts['records_read'], config.ingest.fields
    dropped = Counter({name: number for name, number in sample.counts.items() if name.startswith('dropped_')})
    if not read:
        findings.stop(f'config.data.raw: {config.data.raw} contains no records: use other files')
        return
    for name, number in dropped.most_common():
        findings.fact(f'  dropped, {name.removeprefix("dropped_").replace("_", " ")}: {number:,} ({number / read:.0%})')
    unknown = sorted(name.rpartition(':')[2] for name in dropped if name.startswith('dropped_unknown_role:'))
    problem = findings.warn if sample.conversations else findings.stop
    if unknown:
        number = sum(number for name, number in dropped.items() if name.startswith('dropped_unknown_role'))
        problem(
            f'{number / read:.0%} of the records have messages with unknown roles ({", ".join(unknown[:5])}): add them '
            'to config.ingest.fields.user_role, assistant_role or system_role'
        )
    elif sample.not_messages:
        example = str(sample.not_messages[0])[:40]
        problem(
            f'config.ingest.fields.messages: {fields.messages} leads to {example!r}, which is not a list of messages: '
            'set the key to the path of the messages'
        )
    elif sum(dropped.values()) > read / 2:
        reason = dropped.most_common(1)[0][0].removeprefix('dropped_').replace('_', ' ')
        problem(
            f'{sum(dropped.values()) / read:.0%} of the records would be dropped, most of them for the reason '
            f'{reason!r}: check config.ingest and the paths in config.ingest.fields'
            + (f' (such a record has the fields {sample.outline})' if sample.outline else '')
        )


def _shown(sample: Sample, findings: Findings) -> None:
    """Add the beginning of one parsed conversation to the findings, as an example."""
    example = max(sample.conversations[:100], key=lambda each: len(each['messages']) > 2)
    about = {name: example[name] for name in ('id', 'user_id', 'began', 'ended', 'language') if example[name]}
    findings.fact(f'One conversation as it was read: {json.dumps(about, ensure_ascii=False)}')
    for message in example['messages'][:4]:
        text = ' '.join(message['content'].split())
        findings.fact(f'  {message["role"]}: {text[:_SHOWN]}{"…" if len(text) > _SHOWN else ""}')


def _users(sample: Sample, findings: Findings) -> None:
    conversations = sample.conversations
    by_user = Counter(each['user_id'] for each in conversations if each['user_id'])
    several = sum(number > 1 for number in by_user.values())
    if not by_user and (paths := sample.found.get('user')):
        findings.warn(
            f'config.ingest.fields.user: {paths.most_common(1)[0][0]} leads to a value, but never to a user id: '
            'set the key to the path of a string or a number, such as account.id'
        )
    turns = sum(len(each['messages']) // 2 for each in conversations)
    languages = Counter(each['language'] or 'not stated' for each in conversations)
    findings.fact(
        f'Users: {len(by_user):,}, of whom {several:,} have several conversations; {len(conversations):,} '
        f'conversations, {turns:,} exchanges, {sample.follow_ups:,} follow-ups to a reply.'
    )
    findings.fact(
        'Languages: '
        + ', '.join(f'{name} {number / len(conversations):.0%}' for name, number in languages.most_common(5))
    )
    ids = {each['id'] for each in conversations}
    if len(ids) < 0.9 * len(conversations):
        findings.warn(
            f'{len(conversations):,} conversations have only {len(ids):,} different ids, and one conversation per id '
            'is kept: set config.ingest.fields.id to the path of the conversation id'
        )
    if not sample.follow_ups:
        findings.stop(
            'the conversations end with the first reply, so they contain no feedback: add conversations with several '
            'user turns'
        )


def _times(config: ConfigDict, sample: Sample, findings: Findings) -> None:
    """Check that the persona scope can be used with the users and times of the sample."""
    conversations = sample.conversations
    began = sum(bool(each['began']) for each in conversations)
    findings.fact(f'Start times: known for {began / len(conversations):.0%} of the conversations.')
    try:
        SCOPES[config.personas.scope].check(_as_records(sample))
    except UserError as error:
        (findings.stop if sample.whole else findings.warn)(str(error))
        return
    by_user = Counter(each['user_id'] for each in conversations if each['user_id'] and each['began'])
    if config.personas.scope == 'earlier_conversations' and max(by_user.values(), default=0) < 2:
        (findings.stop if sample.whole else findings.warn)(
            'no user has two conversations with times, so no persona can come from an earlier conversation: set '
            "config.personas.scope='first_k_turns'"
        )


def _as_records(sample: Sample) -> list[Conversation]:
    common = RawConversation.__annotations__.keys() & Conversation.__annotations__.keys()
    return [
        Conversation(**{name: each[name] for name in common}, split='train', cluster='')
        for each in sample.conversations
    ]
