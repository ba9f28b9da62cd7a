"""`forget` finds every trace that stages, runs and loops left of a user, and touches nothing else."""

import json
import os
from pathlib import Path

import pytest
import tiny
from raw_conversations import config

from data_pipelines import forget, shards
from data_pipelines.core.journal import Journal, work_folder
from data_pipelines.core.record_files import as_line, load_records, write_records
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import file_digest, locked, write_json
from rlhi_jax.models.checkpoints import weights_at

CORRECTIONS = b'{"delete_user":  "u"}\n{"delete_claim": "c/2"}\n{"delete_user":  "v"}'  # no newline at its end


def write_stage(folder, stage, *records, name='records.jsonl', **made_from):
    folder.mkdir(parents=True)
    write_records(folder / name, records)
    write_json(folder / 'manifest.json', dict(stage=stage, made_from=dict(made_from, settings={}), counts={}))


def conversations(folder, *names):
    """Conversations with their users, as ingest writes them."""
    write_stage(folder, 'ingest', *(dict(id=name, user_id=user, text=f'by {user}') for name, user in names))


def settings(folder, **data):
    c = config(folder, **data)
    c.data.raw, c.ingest.opt_out = '', str(folder / 'kept-out.txt')
    return c


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def users(folder):
    return [record['user_id'] for record in load_records(folder / 'records.jsonl')]


def ids(folder):
    return [record['id'] for record in load_records(folder / 'records.jsonl')]


@pytest.mark.parametrize('name', ['conversations', 'of [a] *'])
@pytest.mark.parametrize('new', [False, True])
def test_work_beside_a_folder_that_the_config_names(tmp_path, name, new):
    """A run was killed while it replaced a folder (before and after the new one was there) or while it worked."""
    conversations(tmp_path / f'.{name}.old', ('c', 'u'), ('d', 'v'))
    if new:
        conversations(tmp_path / name, ('c', 'u'), ('d', 'v'))
    conversations(tmp_path / f'.{name}.tmp', ('c', 'u'))
    Journal(work_folder(tmp_path / name) / 'journal.sqlite', 'work').add('c', 'by u')
    write_stage(tmp_path / 'follow_ups', 'follow_ups', dict(id='c/2', conversation='c', user_id='u'))
    other = tmp_path / '.other.tmp' / 'manifest.json'
    other.parent.mkdir()
    other.touch()
    c = settings(tmp_path, conversations=str(tmp_path / name), follow_ups=str(tmp_path / 'follow_ups'))
    forget.forget(c, frozenset('u'), None)
    assert users(tmp_path / name) == ['v'] and users(tmp_path / 'follow_ups') == [] and other.exists()
    assert {path.name for path in tmp_path.iterdir()} == {name, 'follow_ups', 'kept-out.txt', '.other.tmp'}


@pytest.mark.parametrize('at_work', ['.personas.tmp', 'conversations'])
def test_who_is_at_work_is_left_alone(tmp_path, at_work):
    """A stage that writes its folder, and one that has just put it in place."""
    conversations(tmp_path / 'conversations', ('c', 'u'))
    Journal(work_folder(tmp_path / 'personas') / 'journal.sqlite', 'work').add('c', 'by u')
    conversations(tmp_path / '.personas.tmp', ('c', 'u'))
    c, lock = settings(tmp_path), locked(tmp_path / at_work)
    before = files(tmp_path / 'conversations') | files(work_folder(tmp_path / 'personas')) | files(tmp_path / at_work)
    with pytest.raises(UserError, match=f'{at_work} is being written by another run'):
        forget.forget(c, frozenset('u'), str(tmp_path))
    assert files(tmp_path).items() >= before.items() and not Path(c.ingest.opt_out).exists()
    os.close(lock)
    forget.forget(c, frozenset('u'), str(tmp_path))
    assert users(tmp_path / 'conversations') == [] and not list(tmp_path.glob('.*'))


def test_links_are_followed(tmp_path):
    run, disk = tmp_path / 'run', tmp_path / 'disk'
    conversations(disk / 'data', ('c', 'u'), ('d', 'v'))
    write_stage(disk / 'card', 'card')
    run.mkdir()
    for link, target in (('conversations', disk / 'data'), ('card', disk / 'card'), ('loop', run)):
        (run / link).symlink_to(target)
    Journal(work_folder(run / 'conversations') / 'journal.sqlite', 'work').add('c', 'by u')
    for user in 'uw':
        forget.forget(settings(tmp_path), frozenset(user), str(run))
    assert users(run / 'conversations') == ['v'] and (run / 'conversations').is_symlink()
    assert [path.name for path in disk.iterdir()] == ['data'] and not list(tmp_path.rglob('.*'))


def test_names_with_slashes_are_of_one_user(tmp_path):
    conversations(tmp_path / 'conversations', ('c', 'u'), ('c/2', 'v'), ('d/2', 'u'), ('d', 'v'))
    turns = [('c/2', 'c', 'u'), ('c/2/2', 'c/2', 'v'), ('d/2/2', 'd/2', 'u'), ('d/2', 'd', 'v')]
    records = [dict(id=name, conversation=talk, user_id=user) for name, talk, user in turns]
    write_stage(tmp_path / 'follow_ups', 'follow_ups', *records)
    known = ['c/0', 'c/2', 'c/2/0', 'c/2/2', 'd/2/0', 'd/2/2', 'd/0', 'd/2']
    write_stage(tmp_path / 'personas', 'personas', *(dict(id=name, persona='') for name in known))
    forget.forget(settings(tmp_path), frozenset('u'), str(tmp_path))
    assert ids(tmp_path / 'conversations') == ['c/2', 'd'] and ids(tmp_path / 'follow_ups') == ['c/2/2', 'd/2']
    assert ids(tmp_path / 'personas') == ['c/2/0', 'c/2/2', 'd/0', 'd/2']


def write_run(folder, model, *steps):
    folder.mkdir()
    write_json(folder / 'model.json', dict(weights=folder.name))
    write_json(folder / 'run.json', dict(model=model))
    (folder / 'examples.jsonl').write_bytes(b''.join(map(as_line, steps)) + b'{"step": 9, "pairs": ["c/2 rew')


def test_runs_keep_a_note_and_so_do_those_that_began_with_them(tmp_path):
    conversations(tmp_path / 'conversations', ('c', 'u'), ('d', 'v'))
    steps = [
        dict(step=0, pairs=['d/2 rewrite']),
        dict(step=1, pairs=['c/2 best/worst', 'd/2 best/worst', 'c/4 rewrite']),
    ]
    write_run(tmp_path / 'first', 'base', *steps)
    write_run(tmp_path / 'second', weights_at('first', 2), steps[0])
    write_run(tmp_path / 'third', weights_at('second', 1), steps[0])
    write_run(tmp_path / 'other', 'base', steps[0])
    c = settings(tmp_path)
    trained = [tmp_path / name for name in ('first', 'second', 'third')]
    assert forget.forget(c, frozenset('u'), None).runs == trained
    assert (tmp_path / 'first' / 'examples.jsonl').read_bytes() == b''.join(
        map(as_line, [steps[0], dict(step=1, pairs=['d/2 best/worst'], forgotten=2)])
    )
    assert (tmp_path / 'other' / 'examples.jsonl').read_bytes() == as_line(steps[0])
    notes = [(path / 'trained_on_forgotten.json').read_bytes() for path in trained]
    assert [json.loads(note)['pairs'] for note in notes] == [2, 0, 0]
    assert forget.forget(c, frozenset(['nobody']), None).runs == trained
    assert forget.forget(c, frozenset(['v']), None).runs == [*trained[:1], tmp_path / 'other', *trained[1:]]


def test_rounds_of_an_online_run_lose_answers_and_pairs(tmp_path):
    """Also those of prompts whose ids name no conversation, and those of a user of whom nothing else is left."""
    run, asked = tmp_path / 'run', (('c/0', 'u'), ('mine', 'u'), ('c/0 pass 2', 'u'), ('d/0', 'v'))
    names = [f'{name} best/worst' for name, _ in asked]
    write_run(run, 'base', dict(step=0, pairs=names))
    answers = [dict(id=name, sample=0, text='yes', user_id=user) for name, user in asked]
    pairs = [dict(id=f'{name} best/worst', user_id=user, prompt=[]) for name, user in asked]
    (run / 'rounds' / '000001').mkdir(parents=True)
    conversations(tmp_path / 'conversations', ('d', 'v'))
    for name, records in (('replies-0', answers), ('pairs', pairs)):
        write_records(run / 'rounds' / '000001' / f'{name}.jsonl', records)
    with open(run / 'rounds' / '000001' / 'replies-0.jsonl', 'ab') as file:
        file.write(b'{"id": "c/0", "text": "torn')
    (run / 'rounds' / '000002').mkdir()
    (run / 'rounds' / '000002' / 'replies-0.jsonl').write_text('{"id": "mine", "text": "torn')
    report = forget.forget(settings(tmp_path), frozenset('u'), str(tmp_path))
    assert report.runs == [run] and not report.unknown
    assert not (run / 'rounds' / '000002' / 'replies-0.jsonl').read_bytes()
    for name, records in (('replies-0', answers), ('pairs', pairs)):
        path = run / 'rounds' / '000001' / f'{name}.jsonl'
        assert path.read_bytes() == as_line(records[3]) and report.removed[path] == dict(lines=3)
    assert (run / 'examples.jsonl').read_bytes() == as_line(dict(step=0, pairs=names[3:], forgotten=3))
    assert forget.forget(settings(tmp_path), frozenset('u'), str(tmp_path)).removed == {}


@pytest.mark.parametrize('damaged', ['model.json', 'run.json'])
def test_a_run_that_cannot_be_read_stops_the_call_before_anything_changes(tmp_path, damaged):
    conversations(tmp_path / 'conversations', ('c', 'u'), ('d', 'v'))
    write_run(tmp_path / 'run', 'base', dict(step=0, pairs=['c/2 rewrite']))
    (tmp_path / 'run' / damaged).write_text('{')
    before = files(tmp_path)
    with pytest.raises(UserError, match=f'{damaged} is not valid JSON .*: remove the run'):
        forget.forget(settings(tmp_path), frozenset('u'), None)
    assert files(tmp_path) == before
    write_json(tmp_path / 'run' / damaged, dict(weights='run', model='base'))
    assert forget.forget(settings(tmp_path), frozenset('u'), None).runs == [tmp_path / 'run']
    assert users(tmp_path / 'conversations') == ['v']


def test_runs_on_shards_of_preferences_that_no_stage_wrote(tmp_path):
    """Shards that contain nobody else are removed."""
    tiny.write_preferences(tmp_path / 'mine.jsonl', 24)
    theirs = [record for record in tiny.preferences(24) if record['user_id'] == 'user1']
    write_records(tmp_path / 'theirs.jsonl', theirs)
    c = settings(tmp_path, conversations='')
    for name in ('mine', 'theirs'):
        c.data.pairs, c.data.shards = str(tmp_path / f'{name}.jsonl'), str(tmp_path / f'shards of {name}')
        shards.STAGE.run(c)
    write_run(tmp_path / 'run', 'base', dict(step=0, pairs=[record['id'] for record in tiny.preferences(24)]))
    report = forget.forget(c, frozenset(['user1']), str(tmp_path))
    assert report.runs == [tmp_path / 'run']
    trees = report.removed[tmp_path / 'shards of mine']['trees']
    assert report.removed == {tmp_path / 'shards of mine': dict(trees=trees), tmp_path / 'shards of theirs': {}}
    (step,) = load_records(tmp_path / 'run' / 'examples.jsonl')
    assert not {record['id'] for record in theirs} & set(step['pairs']) and step['forgotten'] == len(theirs)
    assert not (tmp_path / 'shards of theirs').exists()


def test_each_loop_below_a_folder(tmp_path):
    for name in ('one', 'two'):
        conversations(tmp_path / name / 'conversations', (f'{name} c', 'u'), (f'{name} d', 'v'))
        write_json(tmp_path / name / 'loop.json', {})
        write_json(tmp_path / name / 'report.json', dict(pairs='by u'))
        (tmp_path / name / 'personas.corrections.jsonl').write_bytes(CORRECTIONS)
    (tmp_path / 'mine').mkdir()
    write_json(tmp_path / 'mine' / 'report.json', 'of something else')
    report = forget.forget(settings(tmp_path), frozenset('u'), str(tmp_path))
    for name in ('one', 'two'):
        assert users(tmp_path / name / 'conversations') == ['v']
        assert not (tmp_path / name / 'report.json').exists()
        corrections = tmp_path / name / 'personas.corrections.jsonl'
        assert corrections.read_bytes() == CORRECTIONS.split(b'\n', 1)[1] and report.removed[corrections] == dict(
            lines=1
        )
        assert corrections.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / 'mine' / 'report.json').exists()


@pytest.mark.parametrize('where', ['beside', 'named'])
def test_corrections_are_read_as_their_stage_reads_them(tmp_path, where):
    path = tmp_path / 'elsewhere' / 'by hand' if where == 'named' else tmp_path / 'personas.corrections.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CORRECTIONS + b'\n\n')
    conversations(tmp_path / 'conversations', ('c', 'u'))
    write_stage(tmp_path / 'personas', 'personas', corrections=file_digest(path))
    c = settings(tmp_path, personas=str(tmp_path / 'personas'))
    c.personas.corrections = str(path) if where == 'named' else ''
    before = files(tmp_path)
    with pytest.raises(UserError, match='line 4 is not a correction'):
        forget.forget(c, frozenset('u'), None)
    assert files(tmp_path) == before
    path.write_bytes(CORRECTIONS)
    write_json(tmp_path / 'personas' / 'manifest.json', dict(stage='personas', made_from=[file_digest(path)]))
    half = path.with_name(f'.{path.name}.7.tmp')
    half.write_bytes(b'by u')
    forget.forget(c, frozenset('u'), None)
    assert path.read_bytes() == b'{"delete_user":  "v"}' and not half.exists()
    assert json.loads((tmp_path / 'personas' / 'manifest.json').read_text())['made_from'] == [file_digest(path)]
    forget.forget(c, frozenset('v'), None)
    assert not path.exists()
    assert json.loads((tmp_path / 'personas' / 'manifest.json').read_text())['made_from'] == ['']


def test_what_cannot_be_done_is_refused(tmp_path):
    c = settings(tmp_path)
    with pytest.raises(UserError, match='config.data does not point to a folder'):
        forget.forget(c, frozenset('u'), None)
    with pytest.raises(UserError, match='--workdir=.*none is not a folder'):
        forget.forget(c, frozenset('u'), str(tmp_path / 'none'))
    for name in ('', ' u', 'u\n', 'u\rv', '\ufeffu', os.fsdecode(b'\xff')):
        with pytest.raises(UserError, match='--user=.* cannot be stored in'):
            forget.forget(c, frozenset([name]), str(tmp_path))
    assert not list(tmp_path.iterdir())
    conversations(tmp_path / 'conversations', ('c', 'u'))
    before, c.ingest.opt_out = files(tmp_path), ''
    with pytest.raises(
        UserError, match='config.ingest.opt_out is empty and --workdir is missing: set config.ingest.opt_out'
    ):
        forget.forget(c, frozenset('u'), None)
    c.ingest.opt_out = str(tmp_path / 'conversations')
    with pytest.raises(UserError, match='config.ingest.opt_out: .* cannot be read'):
        forget.forget(c, frozenset('u'), None)
    c.ingest.opt_out = str(tmp_path / 'conversations' / 'manifest.json' / 'list')
    with pytest.raises(UserError, match='config.ingest.opt_out: .* cannot be written'):
        forget.forget(c, frozenset('u'), None)
    assert files(tmp_path) == before
    refused = tiny.run_program('data_pipelines.forget', f'--config={tiny.CONFIG}', check=False)
    assert refused.returncode == 2 and '--user' in refused.stderr
