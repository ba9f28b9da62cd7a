"""Folders appear whole and in place, and only one process at a time writes one."""

import shutil

import pytest

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder, settle, write_bytes


def test_two_runs_cannot_write_one_folder(tmp_path):
    with new_folder(tmp_path / 'out') as ours:
        (ours / 'manifest.json').write_text('ours')
        with pytest.raises(UserError, match='being written by another run'), new_folder(tmp_path / 'out'):
            pass
    assert (tmp_path / 'out' / 'manifest.json').read_text() == 'ours'
    with new_folder(tmp_path / 'out', overwrite=True) as again:
        (again / 'manifest.json').write_text('again')
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('meanwhile', ['removed', 'replaced by another run'])
def test_removed_folder_is_not_recreated(tmp_path, meanwhile):
    with pytest.raises(UserError, match=r'\.out\.tmp was removed'), new_folder(tmp_path / 'out') as temporary:
        write_bytes(temporary / 'early', b'early')
        shutil.rmtree(temporary)
        with pytest.raises(FileNotFoundError):
            write_bytes(temporary / 'late', b'late')
        if meanwhile != 'removed':
            temporary.mkdir()
            (temporary / 'theirs').touch()
    left = [path.name for path in tmp_path.rglob('*')]
    assert left == ([] if meanwhile == 'removed' else ['.out.tmp', 'theirs'])


def test_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / 'disk' / 'real')
    for number in range(2):
        with new_folder(tmp_path / 'out', overwrite=True) as temporary:
            (temporary / 'manifest.json').write_text(str(number))
    assert (tmp_path / 'disk' / 'real' / 'manifest.json').read_text() == '1' and (tmp_path / 'out').is_symlink()
    (tmp_path / 'disk' / 'real').rename(tmp_path / 'disk' / '.real.old')  # as if killed during the replacement
    settle(tmp_path / 'out')
    assert (tmp_path / 'out' / 'manifest.json').read_text() == '1'
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['disk', 'manifest.json', 'out', 'real']
