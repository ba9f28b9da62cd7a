"""Preference JSONL to shards: every line is counted, no pair is lost, and reruns change no byte."""

import dataclasses
import gzip
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny

from data_pipelines.preferences import files, layouts
from data_pipelines.preferences.files import read_preferences
from data_pipelines.raw import files as raw_files
from data_pipelines.raw import messages
from data_pipelines.shards import by_tree
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.plan import load_plan
from rlhi_jax.data.shards import Shards

USER = {'role': 'user', 'content': 'Hi'}
REPLY = {'role': 'assistant', 'content': 'Hello'}
OTHER = {'role': 'assistant', 'content': 'Go away'}
GOOD = dict(prompt=[USER], chosen=[REPLY], rejected=[OTHER])

CALL = {'role': 'assistant', 'content': None, 'tool_calls': [{'function': {'name': 'look'}}]}
RATED = dict(prompt='Hi', response='Hello', helpfulness=4)
ARENA = dict(conversation_a=[USER, REPLY], conversation_b=[USER, OTHER])

DROPPED = {
    'not_json': ['no', '{"prompt": ', '[1, ' * 100_000],
    'not_utf8': [b'{"prompt": "\xff"}'],
    'not_an_object': ['"text"', 'null', '3', '[]'],
    'chosen_or_rejected_missing': [{}, dict(prompt='a', chosen='b'), dict(prompt='a', rejected='b')],
    'turns_not_a_list_of_messages': [
        GOOD | {'chosen': 3}, GOOD | {'rejected': None}, GOOD | {'prompt': ['Hi']}, GOOD | {'prompt': [[USER]]},
    ],
    'message_without_role': [GOOD | {'prompt': [{'content': 'Hi'}]}, GOOD | {'chosen': {'content': 'Hi', 'role': 3}}],
    'message_without_text': [
        GOOD | {'chosen': [{'role': 'assistant', 'content': None}]}, GOOD | {'chosen': {'role': 'assistant'}},
    ],
    'part_without_text': [GOOD | {'prompt': [{'role': 'user', 'content': [{'type': 'image_url', 'image_url': 'x'}]}]}],
    'unknown_role:narrator': [GOOD | {'prompt': [{'role': 'narrator', 'content': 'Once'}, USER]}],
    'unknown_role': [GOOD | {'prompt': [{'role': 'n' * 99, 'content': 'Once'}, USER]}],
    'has_images': [GOOD | {'images': ['x.png']}],
    'reply_calls_tools': [GOOD | {'chosen': [CALL]}, GOOD | {'rejected': [OTHER | {'function_call': {'name': 'f'}}]}],
    'lone_surrogate': [GOOD | {'persona': '\ud800'}],
    'no_prompt': [dict(chosen='b', rejected='c'), dict(chosen=[REPLY], rejected=[OTHER])],
    'prompt_does_not_end_in_a_user_turn': [
        GOOD | {'prompt': []},
        GOOD | {'prompt': [USER, REPLY]},
        GOOD | {'prompt': [{'role': 'system', 'content': 'Be kind.'}]},
    ],
    'prompt_and_replies_disagree': [
        GOOD | {'chosen': [USER, REPLY]},
        dict(prompt='Ho', chosen=[USER, REPLY], rejected=[USER, OTHER]),
    ],
    'reply_does_not_end_in_an_assistant_turn': [GOOD | {'chosen': []}, GOOD | {'rejected': [OTHER, USER]}],
    'history_is_not_pairs_of_texts': [dict(instruction='a', history=['b'], chosen='c', rejected='d')],
    'empty_message': [GOOD | {'prompt': ' \n'}, GOOD | {'chosen': ''}, GOOD | {'rejected': '\t'}],
    'chosen_equals_rejected': [GOOD | {'rejected': [REPLY]}, GOOD | {'rejected': 'Hello \n'}],
    'tie': [
        GOOD | dict(score_chosen=3, score_rejected=3.0),
        ARENA | dict(winner='tie (bothbad)'),
        dict(prompt='Hi', response_1='a', response_2='b', preference_strength=0),
    ],
    'chosen_has_the_lower_score': [GOOD | dict(chosen_score=1, rejected_score=2)],
    'comparison_without_a_winner': [
        dict(prompt='Hi', response_1='a', response_2='b', preference_strength='left'),
        ARENA | dict(winner='model_c'),
    ],
    'rating_is_not_a_number': [RATED | dict(helpfulness='high'), RATED | dict(helpfulness=float('nan'))],
    'prompt_with_one_rated_reply': [RATED],
    **{
        f'{name}_not_a_number_from_0': [
            GOOD | {name: bad} for bad in ('1', True, [], -1, float('nan'), float('inf'), 1e39, 10**400)
        ]
        for name in ('weight', 'margin')
    },
    'id_not_text': [GOOD | {'id': ['a']}, GOOD | {'id': True}, GOOD | {'id': 1.5}],
    'persona_not_text': [GOOD | {'persona': 3}, GOOD | {'persona': {'likes': 'tea'}}],
    'user_id_not_text': [GOOD | {'user_id': {}}],
    'system_not_text': [GOOD | {'system': ['Be kind.']}],
    'id_seen_before': [],  # tested separately
    'too_long': [],  # tested in test_raw_files
    'unreadable_value': [],  # tested in test_ingest
    'message_is_not_an_object': [],  # only conversations can contain such a list
}  # fmt: skip


def as_line(record) -> bytes:
    return record if isinstance(record, bytes) else (record if isinstance(record, str) else json.dumps(record)).encode()


def read(tmp_path: Path, records, name: str = 'pairs.jsonl'):
    """Preferences of some records, and the counts."""
    (tmp_path / name).write_bytes(b'\n'.join(map(as_line, records)))
    counts = Counter()
    return list(read_preferences([tmp_path / name], counts)), dict(+counts)


@pytest.mark.parametrize(('reason', 'bad'), DROPPED.items(), ids=DROPPED)
def test_bad_records_are_counted_by_reason(reason, bad, tmp_path):
    kept, counts = read(tmp_path, [GOOD, *bad, '', GOOD, '  '])
    assert [p.id for p in kept] == ['pairs.jsonl:1', f'pairs.jsonl:{len(bad) + 3}']
    dropped = {f'dropped_{reason}': len(bad)} if bad else {}
    read_as_ratings = {'rated_replies_read': len(bad)} if reason == 'prompt_with_one_rated_reply' else {}
    assert counts == {'lines_read': len(bad) + 2, 'pairs_kept': 2, **dropped, **read_as_ratings}


def test_every_reason_is_tested():
    modules = (files, layouts, messages, raw_files)
    sources = '\n'.join(Path(module.__file__).read_text() for module in modules)
    reasons = set(re.findall(r"BadRecord\(f?'([^']*)'", sources)) | set(re.findall(r"'dropped_([a-z_]+)'", sources))
    reasons |= {f'{name}_not_text' for name in ('id', 'persona', 'user_id')}
    reasons |= {f'{name}_not_a_number_from_0' for name in ('weight', 'margin')}
    reasons |= {'unknown_role:narrator', 'unknown_role', 'part_without_text'}  # not literals inside BadRecord(…)
    reasons -= {'preference_without_a_follow_up', 'rating_is_not_a_label'}  # in tests/test_feedback.py
    assert reasons - {'{name}_not_text', '{name}_not_a_number_from_0', 'unknown_role:{name}'} == set(DROPPED)


def test_ids_seen_before(tmp_path):
    """The first preference of an id is kept; lines without ids get distinct ones, even in files of one name."""
    kept, counts = read(
        tmp_path, [GOOD | {'id': 'a', 'weight': 2}, GOOD | {'id': 'a'}, GOOD | {'id': 7, 'weight': None}]
    )
    assert [(p.id, p.weight) for p in kept] == [('a', 2.0), ('7', 1.0)]
    assert counts == {'lines_read': 3, 'pairs_kept': 2, 'dropped_id_seen_before': 1}
    paths = [tmp_path / day / 'pairs.jsonl' for day in ('monday', 'tuesday')]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(as_line(GOOD))
    counts = Counter()
    assert len({p.id for p in read_preferences(paths, counts)}) == 2
    assert counts == {'lines_read': 2, 'pairs_kept': 2}


def test_formats(tmp_path):
    """Strings, TRL's implicit prompts (explicit ones too, and null), and .jsonl.gz mean the same."""
    implicit = dict(chosen=[USER, REPLY, USER, REPLY], rejected=[USER, REPLY, USER, OTHER])
    explicit = dict(prompt=[USER, REPLY, USER], chosen=[REPLY], rejected=[OTHER])
    plain = dict(prompt='Hi', chosen=' Hello', rejected='Go away\n')
    system = dict(GOOD, prompt=[{'role': 'system', 'content': 'Be kind.'}, USER], persona='Likes tea.', user_id=4)
    records = [implicit, implicit | {'prompt': None}, explicit, plain, GOOD, system]
    kept, _ = read(tmp_path, records)
    texts = [dataclasses.replace(p, id='') for p in kept]
    assert texts[0] == texts[1] == texts[2] and texts[3] == texts[4]
    assert texts[0].prompt == (('user', 'Hi'), ('assistant', 'Hello'), ('user', 'Hi'))
    assert texts[0].chosen == (('assistant', 'Hello'),) and texts[0].rejected == (('assistant', 'Go away'),)
    assert (texts[5].system, texts[5].persona, texts[5].user_id) == ('Be kind.', 'Likes tea.', '4')
    (tmp_path / 'zipped.jsonl.gz').write_bytes(gzip.compress(b'\n'.join(map(as_line, records))))
    assert [dataclasses.replace(p, id='') for p in read_preferences([tmp_path / 'zipped.jsonl.gz'], Counter())] == texts


@pytest.mark.parametrize('seed', range(20))
def test_preferences_of_a_tree_are_brought_together_on_disk(seed, tmp_path):
    records = tiny.branching_preferences(np.random.default_rng(seed))
    preferences = [tiny.parsed(record) for record in records]
    groups = list(by_tree(iter(preferences), tmp_path / 'scratch'))
    assert [tree for group in groups for tree in grow_trees(group)] == grow_trees(preferences)
    assert all(len(grow_trees(group)) == 1 for group in groups) and not (tmp_path / 'scratch').exists()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_reruns(tmp_path):
    """A rerun keeps its output, other input needs --overwrite, and the same input gives the same bytes anywhere."""
    first, second = tmp_path / 'a', tmp_path / 'b'
    for folder in (first, second):
        folder.mkdir()
        tiny.prepare(folder, pairs=8)
    assert folder_bytes(first / 'shards') == folder_bytes(second / 'shards')
    assert folder_bytes(first / 'rows') == folder_bytes(second / 'rows')

    def run(stage: str, *flags: str, check: bool = True):
        names = {'data.pairs': 'pairs.jsonl', 'data.shards': 'shards', 'data.rows': 'rows', 'model.path': 'model'}
        paths = [f'--config.{key}={first / name}' for key, name in names.items()]
        return tiny.run_program(f'data_pipelines.{stage}', f'--config={tiny.CONFIG}', *paths, *flags, check=check)

    before = {path: path.stat().st_mtime_ns for path in (first / 'shards').iterdir()}
    assert 'up to date' in run('shards').stdout
    assert {path: path.stat().st_mtime_ns for path in (first / 'shards').iterdir()} == before
    with gzip.open(first / 'more.jsonl.gz', 'wb') as file:
        file.write(as_line(GOOD | {'id': 'more'}))
    both = f'--config.data.pairs={first / "pairs.jsonl"},{first / "more.jsonl.gz"}'
    refused = run('shards', both, check=False)
    assert refused.returncode == 2 and '--overwrite' in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in (first / 'shards').iterdir()} == before
    pairs = Shards(second / 'shards').manifest['counts']['pairs_kept']
    assert f'kept {pairs + 1} of' in run('shards', both, '--overwrite').stdout
    assert Shards(first / 'shards').manifest['counts']['pairs_kept'] == pairs + 1
    # The rows were made for the old shards.
    assert run('rows', check=False).returncode == 2
    run('rows', '--overwrite')
    assert load_plan(first / 'rows')[0].pair_names[-1] == 'more' and len(list(tmp_path.rglob('*.tmp'))) == 0


def test_killed_stage_leaves_no_output(tmp_path):
    tiny.write_preferences(tmp_path / 'pairs.jsonl', 20_000)
    shards, temporary = tmp_path / 'shards', tmp_path / '.shards.tmp'
    flags = [f'--config={tiny.CONFIG}', f'--config.data.pairs={tmp_path / "pairs.jsonl"}']
    flags += [f'--config.data.shards={shards}', '--config.data.trees_per_shard=100']
    command = [sys.executable, '-m', 'data_pipelines.shards', *flags]
    process = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL)
    while not list(temporary.glob('*.array_record')):
        assert process.poll() is None, 'ended before its time'
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert temporary.exists() and not shards.exists()
    tiny.write_preferences(tmp_path / 'pairs.jsonl', 50)
    tiny.run_program('data_pipelines.shards', *flags)
    assert not temporary.exists() and sorted(folder_bytes(shards)) == [
        'interactions-00000.array_record',
        'manifest.json',
    ]
