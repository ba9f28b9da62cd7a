"""Users are forgotten in a loop without any setting, and stay out of it, because of the opt-out list beside it."""

import json

import pytest
import tiny
from raw_conversations import config, raw_conversation, write_lines

from data_pipelines import forget, ingest
from data_pipelines.simulator.users import hashed
from rlhi_jax.config.loop_paths import stage_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import write_json
from rlhi_jax.loop import Round

USERS = ('zebra', 'horse', 'mouse')
ZEBRA, HORSE, MOUSE = map(hashed, USERS)


@pytest.fixture
def c(tmp_path):
    """A config whose only path is that of the raw data, in which each user's texts name the user."""
    raw = [
        raw_conversation(f'{user}{n}', f'Tell the {user} of {n}.', f'Well, {user}.', user=user)
        for user in USERS
        for n in range(3)
    ]
    write_lines(tmp_path / 'raw.jsonl', raw)
    return config(tmp_path, conversations='')


def run_ingest(c, workdir, **how):
    """Run the stage as `python -m data_pipelines.ingest --workdir` does, and return its records."""
    c = stage_config(c, workdir, 'ingest')
    ingest.STAGE.run(c, **how)
    assert c.data.conversations == str(workdir / 'conversations')
    return (workdir / 'conversations' / 'records.jsonl').read_bytes()


def forget_user(c, user, workdir):
    return forget.forget(c, frozenset([user]), str(workdir))


def test_a_user_stays_out_of_a_loop_without_a_setting(c, tmp_path, capsys):
    workdir, listed = tmp_path / 'runs' / 'mine', tmp_path / 'runs' / 'mine.opt_out'
    assert b'zebra' in run_ingest(c, workdir) and not listed.exists()
    report = forget_user(c, ZEBRA, workdir)
    assert report.lists == [str(listed)] and listed.read_text() == f'{ZEBRA}\n'
    assert listed.stat().st_mode & 0o777 == 0o600
    left = (workdir / 'conversations' / 'records.jsonl').read_bytes()
    assert b'zebra' not in left and left.count(b'horse') >= 6
    capsys.readouterr()
    assert run_ingest(c, workdir) == left and 'up to date' in capsys.readouterr().out
    assert run_ingest(c, workdir, overwrite=True) == left
    loop = Round(c, workdir).parts()[0]
    assert loop.name == 'ingest' and loop.state().value == 'up to date'
    loop.make(True)
    assert (workdir / 'conversations' / 'records.jsonl').read_bytes() == left
    forget_user(c, HORSE, workdir)
    assert set(listed.read_text().split()) == {ZEBRA, HORSE}
    assert run_ingest(c, workdir, overwrite=True).count(b'Tell the') == 3


def test_the_program_says_where_the_list_is(c, tmp_path):
    workdir = tmp_path / 'mine'
    run_ingest(c, workdir)
    flags = [f'--config={tiny.CONFIG}', f'--workdir={workdir}', f'--user={ZEBRA}']
    done = tiny.run_program('data_pipelines.forget', *flags)
    assert f'{workdir}.opt_out: the users on this list are excluded from later runs of `ingest`' in done.stdout
    assert f'{workdir / "conversations"}: {{"records.jsonl": 3}} removed' in done.stdout


def test_each_of_several_loops_has_its_own_list(c, tmp_path):
    """One loop is reached by a link, and one has only been claimed."""
    runs, disk = tmp_path / 'runs', tmp_path / 'disk'
    run_ingest(c, runs / 'one')
    run_ingest(c, disk / 'two')
    (runs / 'two').symlink_to(disk / 'two')
    (runs / 'three').mkdir()
    write_json(runs / 'three' / 'loop.json', {})
    forget_user(c, HORSE, runs / 'one')
    report = forget_user(c, ZEBRA, runs)
    assert report.lists == [str(disk / 'two.opt_out'), str(runs / 'one.opt_out'), str(runs / 'three.opt_out')]
    for name in ('one', 'two', 'three'):
        assert b'mouse' in (left := run_ingest(c, runs / name)) and b'zebra' not in left and b'horse' not in left
        assert run_ingest(c, runs / name, overwrite=True) == left


def test_a_folder_without_any_loop_has_a_list_for_the_loop_to_come(c, tmp_path):
    (tmp_path / 'mine').mkdir()
    report = forget_user(c, ZEBRA, tmp_path / 'mine')
    assert report.lists == [str(tmp_path / 'mine.opt_out')] and report.unknown == [ZEBRA]
    assert b'zebra' not in run_ingest(c, tmp_path / 'mine')


def test_two_lists_for_one_loop_are_refused(c, tmp_path):
    """Else a list that is set later would bring the users of the other list back."""
    workdir, listed = tmp_path / 'mine', tmp_path / 'mine.opt_out'
    run_ingest(c, workdir)
    forget_user(c, ZEBRA, workdir)
    c.ingest.opt_out = str(tmp_path / 'more')
    (tmp_path / 'more').write_text(HORSE)
    for call in (lambda: run_ingest(c, workdir), lambda: forget_user(c, MOUSE, workdir)):
        with pytest.raises(
            UserError,
            match='config.ingest.opt_out is .*more, so the users listed in .*mine.opt_out would not be excluded: add',
        ):
            call()
    assert (tmp_path / 'more').read_text() == HORSE and listed.read_text() == f'{ZEBRA}\n'
    c.ingest.opt_out = str(listed)
    forget_user(c, MOUSE, workdir)
    assert b'mouse' not in run_ingest(c, workdir, overwrite=True)


def test_conversations_outside_the_loop_need_a_list_of_their_own(c, tmp_path):
    workdir = tmp_path / 'mine'
    run_ingest(c, workdir)
    c.data.conversations = str(tmp_path / 'elsewhere')
    ingest.STAGE.run(c)
    before = (tmp_path / 'elsewhere' / 'records.jsonl').read_bytes()
    with pytest.raises(UserError, match=r'config.data.conversations \(.*elsewhere\) does not belong to a loop'):
        forget_user(c, ZEBRA, workdir)
    assert b'zebra' in before == (tmp_path / 'elsewhere' / 'records.jsonl').read_bytes()
    assert not (tmp_path / 'mine.opt_out').exists()
    c.ingest.opt_out = str(tmp_path / 'list')
    assert forget_user(c, ZEBRA, workdir).lists == [c.ingest.opt_out]
    assert b'zebra' not in (tmp_path / 'elsewhere' / 'records.jsonl').read_bytes() + run_ingest(c, workdir)


def test_without_a_list_nothing_changes(c, tmp_path):
    assert stage_config(c, tmp_path / 'mine', 'ingest').ingest.opt_out == ''
    run_ingest(c, tmp_path / 'mine')
    manifest = json.loads((tmp_path / 'mine' / 'conversations' / 'manifest.json').read_text())
    assert 'opted_out' not in manifest['made_from']['settings']
