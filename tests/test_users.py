"""User keys, their salt, and the opt-out list."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest
import tiny
from raw_conversations import config, output, raw_conversation, records, write_lines

from data_pipelines import ingest
from data_pipelines.core.stage import Task
from data_pipelines.privacy.user_keys import make_salt, read_salt
from rlhi_jax.io.errors import UserError


def test_users_are_keys_that_only_the_salt_explains(tmp_path):
    same = dict(header={'accept-language': 'en', 'user-agent': 'A'})
    other = dict(header={'accept-language': 'en', 'user-agent': 'B'})
    raw = [
        raw_conversation('a', 'One?', 'So.', **same),
        raw_conversation('b', 'Two?', 'So.', **same),
        raw_conversation('c', 'Three?', 'So.', **other),
    ]
    write_lines(tmp_path / 'raw.jsonl', raw)
    keys = []
    for name, salt in (('1', 'one'), ('2', 'one'), ('3', 'another')):
        c = config(tmp_path, conversations=str(tmp_path / 'runs' / name))
        c.ingest.salt = str(tmp_path / 'salts' / salt)
        ingest.STAGE.run(c)
        keys.append({record['id']: record['user_id'] for record in records(c)})
    first, again, salted_otherwise = keys
    assert first == again and first['a'] == first['b'] != first['c'] != ''
    assert not set(first.values()) & {*salted_otherwise.values(), raw[0]['hashed_ip']}
    assert (tmp_path / 'salts' / 'one').stat().st_mode & 0o777 == 0o600
    assert (tmp_path / 'runs' / '1').stat().st_mode & 0o777 == 0o700
    assert raw[0]['hashed_ip'].encode() not in output(c)
    flags = [f'--config={tiny.CONFIG}', f'--config.ingest.salt={tmp_path / "salts" / "one"}']
    flags += [f'--user={raw[0]["hashed_ip"]}', f'--header={json.dumps(same["header"])}']
    assert tiny.run_program('data_pipelines.users', *flags).stdout.strip() == first['a']
    (tmp_path / 'link').symlink_to(tmp_path / 'runs')
    for inside in ('runs/salt', 'other/../runs/salt', 'link/salt'):
        c.ingest.salt = str(tmp_path / inside)
        with pytest.raises(UserError, match='store the salt elsewhere'):
            ingest.STAGE.run(c, overwrite=True)
    for other in ('raw.jsonl', 'salts'):
        c.ingest.salt = str(tmp_path / other)
        with pytest.raises(UserError, match='does not contain 32 bytes in hex'):
            ingest.STAGE.run(c, overwrite=True)


def test_runs_that_begin_together_have_one_salt(tmp_path, monkeypatch):
    """Each run finds no salt and starts to write one; all of them read the same whole salt."""
    path = tmp_path / 'salts' / 'salt'
    monkeypatch.setattr(Path, 'exists', lambda self: False)
    make_salt(str(path), outside=tmp_path / 'runs')
    first = read_salt(str(path))
    make_salt(str(path), outside=tmp_path / 'runs')
    assert read_salt(str(path)) == first and [file.name for file in path.parent.iterdir()] == ['salt']


def test_of_who_opts_out_no_text_and_no_id_is_written(tmp_path):
    theirs = dict(header=None, hashed_ip='their-ip', language='Theirish')
    raw = [raw_conversation(f'mine{n}', 'How do bees fly?', 'With wings.') for n in range(3)]
    raw += [raw_conversation(f'theirs{n}', f'Their question {n}?', 'Their answer.') | theirs for n in range(3)]
    raw[-1]['conversation'].insert(0, dict(role='system', content='Their system.'))
    write_lines(tmp_path / 'raw.jsonl', raw)
    (tmp_path / 'opt_out.txt').write_text('\ufefftheir-ip\r\n')
    c = config(tmp_path)
    c.ingest.opt_out = str(tmp_path / 'opt_out.txt')
    (part,) = ingest._scan(Task(c, tmp_path / 'work', 'made of', 'ingest'), ingest.raw_files(c))
    rows = pyarrow.parquet.read_table(part).to_pylist()
    assert [row['opted_out'] for row in rows] == [False] * 3 + [True] * 3
    written = str(rows[3:]) + (part.parent / 'job.json').read_text()
    assert 'theirs' not in written and 'Their' not in written and 'their-ip' not in written
    counts = ingest.STAGE.run(c)
    assert counts['dropped_opted_out'] == 3 and b'heir' not in output(c)
    c.ingest.opt_out = ''
    with pytest.raises(UserError, match='different input or settings'):
        ingest.STAGE.run(c)
    c.ingest.opt_out = str(tmp_path / 'none.txt')
    with pytest.raises(UserError, match=r'config\.ingest\.opt_out: .*none\.txt cannot be read'):
        ingest.STAGE.run(c)
