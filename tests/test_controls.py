"""Control experiments on training data, against a count by hand."""

import json

import pytest
import tiny

from data_pipelines import shards
from rlhi_jax.config import base_config
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.files import read_json


def personas(user: str) -> str:
    return f'I am {user}.'


@pytest.fixture
def records(tmp_path):
    """Preferences of four users with personas, with two pairs for each turn, and of one user without a persona."""
    made = [
        record | dict(id=f'c{n // 2}/2 {kind}', user_id=user, persona=personas(user) if user != 'e' else '')
        for n, record in enumerate(tiny.preferences(40))
        for user, kind in [('abcde'[n // 2 % 5], ('own', 'stranger')[n % 2])]
    ]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, made)))
    return made


def sharded(tmp_path, **settings):
    """The user, persona and pairs of each tree, and the stage's counts."""
    c = base_config()
    c.data.pairs, c.data.shards = str(tmp_path / 'pairs.jsonl'), str(tmp_path / f'shards {settings}')
    c.data.update(settings)
    shards.STAGE.run(c)
    trees = Shards(tmp_path / f'shards {settings}')
    found = [
        (tree.user_id, tree.persona, [pair.id for pair in tree.pairs])
        for tree in map(trees.__getitem__, range(len(trees)))
    ]
    return found, read_json(f'{c.data.shards}/manifest.json', '')['counts']


def test_fewer_users(tmp_path, records):
    trees, counts = sharded(tmp_path, max_users=2)
    users = {user for user, _, _ in trees}
    assert len(users) == 2 == counts['users']
    kept = sorted(name for _, _, pairs in trees for name in pairs)
    assert kept == sorted(record['id'] for record in records if record['user_id'] in users)
    assert counts['dropped_over_max_users'] == len(records) - len(kept)
    assert counts['lines_read'] == len(records) and counts['pairs_kept'] == len(kept)


def test_a_pair_does_not_lose_its_mirror_image(tmp_path, records):
    mirrored = [record | dict(user_id='ab'[n % 2] if n < 8 else 'cd'[n % 2]) for n, record in enumerate(records[:16])]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, mirrored)))
    everybody, _ = sharded(tmp_path, max_users=4)
    three, counts = sharded(tmp_path, max_users=3)
    assert len({user for user, _, _ in everybody}) == 4 and len({user for user, _, _ in three}) == 2
    assert counts['dropped_over_max_users'] == 8 == counts['pairs_kept']


def test_held_out_data_is_not_changed(tmp_path, records):
    trees, counts = sharded(tmp_path, max_users=1, max_pairs=1, shuffle_personas=True, split='validation')
    assert counts['pairs_kept'] == len(records) and {(user, persona) for user, persona, _ in trees} == {
        (record['user_id'], record['persona']) for record in records
    }


def test_fewer_pairs(tmp_path, records):
    trees, counts = sharded(tmp_path, max_pairs=10)
    kept = [name for _, _, pairs in trees for name in pairs]
    assert len(kept) == 10 and counts['dropped_over_max_pairs'] == len(records) - 10
    turns = {name.partition(' ')[0] for name in kept}
    assert sorted(kept) == sorted(record['id'] for record in records if record['id'].partition(' ')[0] in turns)
    fewer, _ = sharded(tmp_path, max_pairs=4)
    assert {name for _, _, pairs in fewer for name in pairs} < set(kept)  # so a curve over sizes adds pairs


def test_shuffled_personas(tmp_path, records):
    trees, counts = sharded(tmp_path, shuffle_personas=True)
    given = dict({(user, persona) for user, persona, _ in trees})
    assert given.keys() == set('abcde') and given['e'] == ''
    assert sorted(given[user] for user in 'abcd') == sorted(map(personas, 'abcd'))
    assert not [user for user in 'abcd' if given[user] == personas(user)]
    assert sorted(name for _, _, pairs in trees for name in pairs) == sorted(record['id'] for record in records)
    assert 'dropped_no_other_persona' not in counts


def test_users_who_would_keep_their_persona_are_left_out(tmp_path, records):
    same = [record | dict(persona='I like tea.') for record in records if record['user_id'] in 'ab']
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, [*same, records[4]])))  # the last is of user c
    trees, counts = sharded(tmp_path, shuffle_personas=True)
    assert counts['dropped_no_other_persona'] > 0
    assert all(persona != ('I like tea.' if user in 'ab' else personas('c')) for user, persona, _ in trees)


def test_without_a_control_folders_stay_up_to_date(tmp_path, records):
    c = base_config()
    c.data.pairs = str(tmp_path / 'pairs.jsonl')
    assert not {'max_users', 'max_pairs', 'shuffle_personas', 'seed'} & set(shards.STAGE.made_from(c))
    c.data.shuffle_personas = True
    assert shards.STAGE.made_from(c).items() >= dict(shuffle_personas=True, seed=0).items()
