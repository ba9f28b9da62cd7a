"""Forgotten users are in no file, and the rest is what the stages would make without them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
from raw_conversations import config, raw_conversation, write_lines

from data_pipelines import (
    card,
    follow_ups,
    forget,
    ingest,
    pairs,
    persona_store,
    personas,
    rewrites,
    rows,
    shards,
    strangers,
)
from data_pipelines.core.journal import Journal, work_folder
from data_pipelines.core.record_files import load_records, write_records
from data_pipelines.labelling.by_head import Head
from data_pipelines.labelling.labels import FEEDBACK, UserTurn
from data_pipelines.simulator.users import hashed
from data_pipelines.sources import simulated
from rlhi_jax.io.files import HeldFolder, write_json
from rlhi_jax.sampling.generator import Reply
from rlhi_jax.train import train

USERS = 12
REMARKS = [
    'Shorter, please.',
    'Too long.',
    'Make it shorter.',
    'Far too long, shorter.',
    'Say it in a list.',
    'Keep it short.',
]
OTHERS = ['Who wrote Hamlet?', 'How big is Norway?', 'What is a quark?', 'Thanks a lot!', 'Name a river.', 'And Rome?']
MADE = ('conversations', 'follow_ups', 'personas', 'rewrites', 'strangers', 'pairs', 'shards')


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """Two conversations of each user; every text names the user."""
    folder, conversations = tmp_path_factory.mktemp('raw'), []
    for user in range(USERS):
        for number in range(2):
            mark = f'zebra{user:02}'
            texts = [f'Tell {mark} of thing {number} {user * user}?', f'Well, {mark}.', REMARKS[user % 6]]
            texts += [f'So, {mark}.', 'And now?', 'Then this.']
            day = f'2026-01-{10 * number + 1 + user % 5:02}T00:00:00+00:00'
            conversation = raw_conversation(f'{mark}-{number}', *texts, user=f'name-{mark}')
            conversations.append(conversation | dict(timestamp=day))
            for turn in conversations[-1]['conversation']:
                turn['timestamp'] = day
    write_lines(folder / 'raw.jsonl', conversations)
    (folder / 'head').mkdir()
    turns = [UserTurn(f'c{n}/2', 'Why?', 'So.', text) for n, text in enumerate(REMARKS + OTHERS)]
    Head.fit(turns, [FEEDBACK] * len(REMARKS) + ['other'] * len(OTHERS)).save(folder / 'head')
    tiny.write_model(folder / 'model')
    return folder


def user(mark):
    return hashed(f'name-{mark}')


def settings(raw, folder, opted_out=()):
    c = config(folder, raw=str(raw / 'raw.jsonl'), **{name: str(folder / name) for name in (*MADE[1:], 'rows', 'card')})
    c.model.path, c.model.dtype, c.model.logprob_chunk = str(raw / 'model'), 'float32', 64
    c.follow_ups.labeller, c.follow_ups.head, c.personas.writer = 'head', str(raw / 'head'), 'quotes'
    c.follow_ups.min_confidence = 0.0
    c.pairs.sources, c.pairs.min_pairs, c.pairs.accept_artefacts = 'rewrites', 1, True
    c.pairs.against = 'both'
    c.rows.tokens, c.rows.scored, c.data.trees_per_shard = 512, 256, 3
    c.train.batch_rows, c.train.max_steps, c.ingest.heldout = 8, 1, 0.3
    c.ingest.opt_out = str(folder / 'kept-out.txt')
    (folder / 'kept-out.txt').write_text(''.join(f'{user}\n' for user in opted_out))
    return c


def run_stages(c, corrected=()):
    """Run all stages except those that sample rewrites, which are written here."""
    for stage in (ingest, follow_ups, personas):
        stage.STAGE.run(c)
    for name in corrected:
        store = load_records(tiny.Path(c.data.personas) / 'claims.jsonl')
        claim = next(each for each in store if each['user_id'] == name)
        persona_store.correct(c, dict(edit_claim=claim['id'], text='I like short answers.'))
    known = {record['id']: record['persona'] for record in load_records(tiny.Path(c.data.personas) / 'records.jsonl')}
    conversations = {record['id']: record for record in load_records(tiny.Path(c.data.conversations) / 'records.jsonl')}
    made = []
    turns = load_records(tiny.Path(c.data.follow_ups) / 'records.jsonl')
    turns = {turn['conversation']: turn for turn in turns if turn['mined'] and turn['turn_index'] == 2}
    for turn in turns.values():
        messages = conversations[turn['conversation']]['messages'][:1]
        rewrite = {name: turn[name] for name in ('id', 'split', 'user_id')} | dict(messages=messages, gain=1.0)
        rewrite |= dict(persona=known[f'{turn["conversation"]}/0'], feedback=turn['follow_up'])
        made.append(rewrite | dict(original=turn['reply'], rewrite=f'Short {turn["reply"]}'))
    counts = {'rewrites_drawn': len(made), 'follow_ups_read': len(made), 'kept_train': len(made)}
    write_stage(rewrites.STAGE, c, made, counts)
    met = with_strangers(turns, conversations)
    write_stage(strangers.STAGE, c, met, dict(claims_read=len(met), kept_train=len(met)))
    for stage in (pairs, shards, rows, card):
        stage.STAGE.run(c)


def write_stage(stage, c, records, counts):
    """Write a finished folder of a stage."""
    folder = Path(c.data[stage.name])
    folder.mkdir(exist_ok=True)
    write_records(folder / 'records.jsonl', records)
    write_json(folder / 'manifest.json', dict(stage=stage.name, made_from=stage.identity(c), counts=counts))


def with_strangers(turns, conversations):
    """Every user meets the next one, if there is one in their split. Their persona is also that of their rewrites."""
    records = []
    for conversation, turn in turns.items():
        mark, number = conversation.split('-')
        other = f'zebra{(int(mark[-2:]) + 1) % USERS:02}'
        stranger = turns.get(f'{other}-{number}')
        if stranger and stranger['split'] == turn['split']:
            wishes = [
                dict(
                    author=each['user_id'], user_id=each['user_id'], feedback=each['follow_up'], claim='', persona=text
                )
                for each, text in ((turn, ''), (stranger, f'I like what {other} likes.'))
            ]
            record = {name: turn[name] for name in ('conversation', 'split', 'user_id')}
            record |= dict(id=f'{turn["id"]} stranger', stranger_id=stranger['user_id'], wishes=wishes)
            record |= dict(messages=conversations[conversation]['messages'][:1], leans=[1.0, 1.0])
            records.append(record | dict(replies=[f'As {mark} likes it.', f'As {other} likes it.']))
    return records


def bytes_of(folder, *names):
    paths = [path for name in names for path in (folder / name).rglob('*') if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != 'manifest.json'}


@pytest.fixture(scope='module')
def finished(raw, tmp_path_factory):
    """All stages and a run, with corrections of two users' claims."""
    folder = tmp_path_factory.mktemp('finished')
    c = settings(raw, folder)
    run_stages(c, corrected=(user('zebra02'), user('zebra05')))
    train(c, folder / 'run')
    return folder


def interrupt(monkeypatch, where):
    """Simulate that the process is killed there: nothing is cleaned up."""

    def killed(*given):
        raise KeyboardInterrupt

    def write(folder, *given, written=forget._write_rest):
        return killed() if folder.path.name == 'personas' else written(folder, *given)

    def replace(path, target, replaced=Path.replace):
        return killed() if path.name == '.personas.tmp' else replaced(path, target)

    def remove(path, removed=forget.remove):
        if path.name != 'removed':
            return removed(path)
        (path / 'manifest.json').unlink()
        return killed()

    monkeypatch.setattr(HeldFolder, '__exit__', lambda held, *exception: os.close(held._lock))
    patches = dict(between=(forget, '_write_rest', write), replacing=(Path, 'replace', replace))
    monkeypatch.setattr(*(patches | dict(removing=(forget, 'remove', remove)))[where])


@pytest.mark.parametrize('interrupted', ['', 'between', 'replacing', 'removing'])
def test_no_byte_is_left_and_the_rest_is_what_would_be_had(raw, finished, tmp_path, monkeypatch, interrupted):
    gone = [user('zebra02'), user('zebra08')]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    c = settings(raw, tmp_path, gone[1:])  # one is on the list already, but was not forgotten yet
    held = {name: len(load_records(tmp_path / name / 'records.jsonl')) for name in MADE[:5]}
    Journal(work_folder(tmp_path / 'pairs') / 'journal.sqlite', 'work').add('zebra02', 'text')
    write_json(tmp_path / 'report.json', dict(of='zebra08'))
    write_json(tmp_path / 'loop.json', {})
    if interrupted:
        interrupt(monkeypatch, interrupted)
        with pytest.raises(KeyboardInterrupt):
            forget.forget(c, frozenset(gone[:1]), str(tmp_path))
        monkeypatch.undo()
    report = forget.forget(c, frozenset(gone[:1]), str(tmp_path))
    left = [path for path in tmp_path.rglob('*') if path.is_file() and path.name != 'kept-out.txt']
    for mark in (b'zebra02', b'zebra08', *map(str.encode, gone)):
        assert not [path for path in left if mark in path.read_bytes()]
    assert sum(b'zebra05' in path.read_bytes() for path in left) >= 5
    assert not (tmp_path / 'rows').exists() and not (tmp_path / 'card').exists()
    assert report.runs == [tmp_path / 'run'] and not report.unknown and not list(tmp_path.glob('.*'))
    assert (tmp_path / 'kept-out.txt').read_text().split() == sorted(gone)
    card.STAGE.run(c)
    funnel = json.loads((tmp_path / 'card' / 'card.json').read_text())['funnel']
    assert all(step['adds_up'] in (True, None) for name in MADE for step in funnel[name]['steps'])
    for name in MADE[:5]:
        removed = held[name] - len(load_records(tmp_path / name / 'records.jsonl'))
        assert removed and funnel[name]['others']['forgotten since, of records.jsonl'] == removed
        assert interrupted or report.removed[tmp_path / name]['records.jsonl'] == removed
    # Finished stages are up to date, because their manifests include the list.
    before = bytes_of(tmp_path, *MADE)
    for stage in (ingest, follow_ups, personas, pairs, shards, rows):
        stage.STAGE.run(c)
    assert bytes_of(tmp_path, *MADE) == before
    other = tmp_path / 'without'
    other.mkdir()
    (other / 'personas.corrections.jsonl').write_bytes((tmp_path / 'personas.corrections.jsonl').read_bytes())
    run_stages(settings(raw, other, gone))
    assert bytes_of(other, *MADE) == before


def test_one_after_another_though_the_first_was_interrupted(raw, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    c = settings(raw, tmp_path)
    interrupt(monkeypatch, 'between')
    with pytest.raises(KeyboardInterrupt):
        forget.forget(c, frozenset([user('zebra02')]), str(tmp_path))
    monkeypatch.undo()
    c.ingest.opt_out = str(tmp_path / 'another-list.txt')
    forget.forget(c, frozenset([user('zebra08')]), str(tmp_path))
    before = bytes_of(tmp_path, *MADE)
    assert not [name for name, data in before.items() if b'zebra02' in data or b'zebra08' in data]
    for stage in (ingest, follow_ups, personas, pairs, shards):
        stage.STAGE.run(c)
    assert bytes_of(tmp_path, *MADE) == before


def test_of_whom_nothing_is_found_nothing_is_removed(raw, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    c = settings(raw, tmp_path)
    Journal(work_folder(tmp_path / 'pairs') / 'journal.sqlite', 'work').add('key', 'text')
    before = bytes_of(tmp_path, '.')
    flags = [f'--config={tiny.CONFIG}', f'--config.ingest.opt_out={c.ingest.opt_out}', f'--workdir={tmp_path}']
    done = tiny.run_program('data_pipelines.forget', *flags, '--user=mistyped,name', '--user=b')
    assert 'nothing was removed' in done.stdout and done.stdout.count('no records found') == 2
    after = bytes_of(tmp_path, '.')
    assert after.pop('kept-out.txt') == b'b\nmistyped,name\n' and before.pop('kept-out.txt') == b''
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {'card/card.json', 'card/card.md'}  # they contain digests of manifests
    for stage in (ingest, follow_ups, personas, pairs, shards, rows, card):
        stage.STAGE.run(c)
    card.STAGE.run(c, overwrite=True)
    assert bytes_of(tmp_path, 'card').items() <= after.items()
    again = tiny.run_program('data_pipelines.forget', *flags, f'--user={user("zebra02")}')
    assert f'{tmp_path / "conversations"}: {{"records.jsonl": 2}} removed' in again.stdout
    assert f'{tmp_path / "card"} was removed: rerun its stage' in again.stdout
    assert f'{tmp_path / "run"}: this run was trained on the data of a forgotten user' in again.stdout
    later = tiny.run_program('data_pipelines.forget', *flags, '--user=nobody')
    assert f'{tmp_path / "run"}: this run was trained on the data of a forgotten user' in later.stdout


@pytest.mark.parametrize('named', [dict(raw='raw'), dict(raw='', prompts='raw/prompts.jsonl')])
def test_simulated_users_are_forgotten_with_their_tastes(raw, tmp_path, monkeypatch, named):
    c = settings(raw, tmp_path)
    c.data.raw, c.data.satisfaction = str(tmp_path / 'raw'), str(tmp_path / 'satisfaction')
    c.simulated.users, c.simulated.conversations, c.simulated.prompts = dict(train=2, validation=1, test=1), 1, 1
    monkeypatch.setattr(
        simulated, 'generate', lambda task, path, prompts: {p.id: [Reply(p.id, 0, 'Yes.', True)] for p in prompts}
    )
    simulated.STAGE.run(c)
    evaluated = tmp_path / 'satisfaction'
    evaluated.mkdir()
    write_records(evaluated / 'records.jsonl', [dict(id='test-000/1', user_id=hashed('test-000'))])
    write_json(evaluated / 'manifest.json', dict(stage='satisfaction', made_from={}))
    c.data.update({key: name and str(tmp_path / name) for key, name in named.items()})
    forget.forget(c, frozenset([hashed('train-000')]), None)
    left = bytes_of(tmp_path, 'raw')
    assert not evaluated.exists() and not [name for name, data in left.items() if hashed('train-000').encode() in data]
    known = [record['id'] for record in load_records(tmp_path / 'raw' / 'users.jsonl')]
    assert known == ['train-001', 'gate-000', 'test-000']
