"""Whoever is forgotten is in no file, and what is left is what would be had without them."""

import json
from pathlib import Path

import pytest
import tiny
from talks import config, talk, write_lines

from data_pipelines import card, follow_ups, forget, ingest, pairs, persona_store, personas, rewrites, rows, shards
from data_pipelines.head_labels import Head
from data_pipelines.journal import Journal, work_folder
from data_pipelines.labels import FEEDBACK, Turn
from data_pipelines.sources.simulated import hashed
from data_pipelines.stage import load_records, write_records
from rlhi_jax.errors import UserError
from rlhi_jax.files import write_json
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
MADE = ('conversations', 'follow_ups', 'personas', 'rewrites', 'pairs', 'shards')


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """Two conversations of each user, whose every text names them."""
    folder, talks = tmp_path_factory.mktemp('raw'), []
    for user in range(USERS):
        for number in range(2):
            own = f'zebra{user:02}'
            said = (f'Tell {own} of thing {number} {user * user}?', f'Well, {own}.', REMARKS[user % 6], f'So, {own}.')
            day = f'2026-01-{10 * number + 1 + user % 5:02}T00:00:00+00:00'
            found = talk(f'{own}-{number}', *said, 'And now?', 'Then this.', user=f'name-{own}')
            talks.append(found | dict(timestamp=day))
            for turn in talks[-1]['conversation']:
                turn['timestamp'] = day
    write_lines(folder / 'raw.jsonl', talks)
    (folder / 'head').mkdir()
    turns = [Turn(f'c{n}/2', 'Why?', 'So.', text) for n, text in enumerate(REMARKS + OTHERS)]
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
    c.rows.tokens, c.rows.scored, c.data.trees_per_shard = 512, 256, 3
    c.train.batch_rows, c.train.max_steps, c.ingest.heldout = 8, 1, 0.3
    c.ingest.opt_out = str(folder / 'kept-out.txt')
    (folder / 'kept-out.txt').write_text(''.join(f'{user}\n' for user in opted_out))
    return c


def run_stages(c, corrected=()):
    """All stages for real, but for the sampling of rewrites, which are written down here."""
    for stage in (ingest, follow_ups, personas):
        stage.STAGE.run(c)
    for name in corrected:
        store = load_records(tiny.Path(c.data.personas) / 'claims.jsonl')
        claim = next(each for each in store if each['user_id'] == name)
        persona_store.correct(c, dict(edit_claim=claim['id'], text='I like short answers.'))
    known = {record['id']: record['persona'] for record in load_records(tiny.Path(c.data.personas) / 'records.jsonl')}
    talks = {record['id']: record for record in load_records(tiny.Path(c.data.conversations) / 'records.jsonl')}
    folder, made = tiny.Path(c.data.rewrites), []
    folder.mkdir()
    for turn in load_records(tiny.Path(c.data.follow_ups) / 'records.jsonl'):
        if turn['mined'] and turn['place'] == 2:
            said = talks[turn['conversation']]['messages'][:1]
            own = {name: turn[name] for name in ('id', 'split', 'user_id')} | dict(messages=said, gain=1.0)
            own |= dict(persona=known[f'{turn["conversation"]}/0'], feedback=turn['follow_up'])
            made.append(own | dict(original=turn['reply'], rewrite=f'Short {turn["reply"]}'))
    write_records(folder / 'records.jsonl', made)
    counts = {'rewrites_drawn': len(made), 'follow_ups_read': len(made), 'kept_train': len(made)}
    write_json(folder / 'manifest.json', dict(stage='rewrites', made_from=rewrites.STAGE.identity(c), counts=counts))
    for stage in (pairs, shards, rows, card):
        stage.STAGE.run(c)


def bytes_of(folder, *names):
    paths = [path for name in names for path in (folder / name).rglob('*') if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != 'manifest.json'}


@pytest.mark.parametrize('interrupted', ['', 'between folders', 'as a folder is replaced'])
def test_no_byte_is_left_and_the_rest_is_what_would_be_had(raw, tmp_path, monkeypatch, interrupted):
    gone = [user('zebra02'), user('zebra08')]
    c = settings(raw, tmp_path)
    run_stages(c, corrected=(gone[0], user('zebra05')))
    train(c, tmp_path / 'run')
    held = {name: len(load_records(tmp_path / name / 'records.jsonl')) for name in MADE[:4]}
    Journal(work_folder(tmp_path / 'pairs') / 'journal.sqlite', 'work').add('zebra02', 'said')
    write_json(tmp_path / 'report.json', dict(of='zebra08'))
    flags = frozenset(gone)
    if interrupted:
        times, written, replaced = iter(range(100)), forget._write_again, Path.replace

        def write(*given):
            if next(times) == 2:
                raise KeyboardInterrupt
            return written(*given)

        def replace(path, target):
            if path.name == '.personas.tmp':
                raise KeyboardInterrupt
            return replaced(path, target)

        if interrupted == 'between folders':
            monkeypatch.setattr(forget, '_write_again', write)
        else:
            monkeypatch.setattr(Path, 'replace', replace)
        with pytest.raises(KeyboardInterrupt):
            forget.forget(c, flags, str(tmp_path))
        monkeypatch.undo()
    named = forget.forget(c, flags, str(tmp_path))
    left = [path for path in tmp_path.rglob('*') if path.is_file() and path.name != 'kept-out.txt']
    for mark in (b'zebra02', b'zebra08', *map(str.encode, gone)):
        assert not [path for path in left if mark in path.read_bytes()]
    assert sum(b'zebra05' in path.read_bytes() for path in left) >= 5
    assert not (tmp_path / 'rows').exists() and not (tmp_path / 'card').exists()
    assert named == [str(tmp_path / 'run')]
    card.STAGE.run(c)
    told = json.loads((tmp_path / 'card' / 'card.json').read_text())['funnel']
    assert all(step['adds_up'] in (True, None) for name in MADE for step in told[name]['steps'])
    for name in MADE[:4]:
        removed = held[name] - len(load_records(tmp_path / name / 'records.jsonl'))
        assert removed and told[name]['others']['forgotten since, of records.jsonl'] == removed
    # Finished stages are up to date, for the list is theirs too.
    before = bytes_of(tmp_path, *MADE)
    for stage in (ingest, follow_ups, personas, pairs, shards, rows):
        stage.STAGE.run(c)
    assert bytes_of(tmp_path, *MADE) == before
    other = tmp_path / 'without'
    other.mkdir()
    (other / 'personas.corrections.jsonl').write_bytes((tmp_path / 'personas.corrections.jsonl').read_bytes())
    run_stages(settings(raw, other, gone))
    assert bytes_of(other, *MADE) == before


def test_runs_that_were_trained_on_them_are_named(raw, tmp_path):
    c = settings(raw, tmp_path)
    run_stages(c)
    train(c, tmp_path / 'run')
    flags = [f'--config={tiny.CONFIG}', f'--config.ingest.opt_out={tmp_path / "kept-out.txt"}', f'--workdir={tmp_path}']
    done = tiny.run_program('data_pipelines.forget', *flags, f'--user={user("zebra02")}')
    assert f'trained on them: {tmp_path / "run"}' in done.stdout
    assert (tmp_path / 'kept-out.txt').read_text() == f'{user("zebra02")}\n'
    again = tiny.run_program('data_pipelines.forget', *flags, '--user=nobody')
    assert 'trained on them' not in again.stdout
    assert (tmp_path / 'kept-out.txt').read_text().split() == sorted(['nobody', user('zebra02')])


def test_work_of_killed_stages_is_removed_where_they_have_no_folder_yet(tmp_path):
    texts = [talk(f'c{n}', f'Why is {n} {"odd " * n}?', 'So.', user=f'name-{n}') for n in range(3)]
    write_lines(tmp_path / 'raw.jsonl', texts)
    c = config(tmp_path, rewrites=str(tmp_path / 'elsewhere' / 'rewrites'))
    c.ingest.opt_out, c.teacher.cache = str(tmp_path / 'kept-out.txt'), str(tmp_path / 'cache')
    (tmp_path / 'kept-out.txt').touch()
    c.personas.corrections = str(tmp_path / 'mended' / 'corrections.jsonl')
    ingest.STAGE.run(c)
    left = [tmp_path / 'cache', tmp_path / 'cache-journal', tmp_path / 'mended' / '.corrections.jsonl.7.tmp']
    left += [tmp_path / 'elsewhere' / '.rewrites.tmp' / 'records.jsonl']
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('what 1 said')
    journal = work_folder(tmp_path / 'elsewhere' / 'rewrites') / 'journal.sqlite'
    Journal(journal, 'work').add('rewrite c1/2 0', 'what 1 said')
    forget.forget(c, frozenset([hashed('name-1')]), None)
    assert not [path for path in (*left, journal) if path.exists()]


def test_what_cannot_be_done_is_refused(raw, tmp_path):
    c = settings(raw, tmp_path)
    with pytest.raises(UserError, match='config.data names no folder'):
        forget.forget(c, frozenset('u'), None)
    c.ingest.opt_out = ''
    with pytest.raises(UserError, match='config.ingest.opt_out'):
        forget.forget(c, frozenset('u'), None)
    refused = tiny.run_program('data_pipelines.forget', f'--config={tiny.CONFIG}', check=False)
    assert refused.returncode == 2 and '--user' in refused.stderr
