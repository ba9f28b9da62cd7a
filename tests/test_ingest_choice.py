"""Which conversations are kept, and in which split: against brute force, with caps, and with users who opt out."""

import gzip
import json
import random
import re

import numpy as np
import pyarrow
import pytest
from raw_conversations import WILDCHAT, config, nothing_is_lost, output, raw_conversation, records, write_lines

from data_pipelines import ingest
from data_pipelines.privacy.user_keys import read_salt, user_key
from data_pipelines.raw import near_duplicates
from data_pipelines.raw.near_duplicates import banding, bands
from data_pipelines.raw.selection import components
from data_pipelines.sources.simulated import wildchat_record
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest


def shingles(text: str) -> set[tuple[str, ...]]:
    """Three words in a row; in Chinese and Japanese, which have no spaces, five characters in a row."""
    words, length = re.findall(r'\w+', text.lower()), near_duplicates.SHINGLE
    if sum('\u3040' < letter < '\ua000' for letter in text[: near_duplicates.OPENING]) > len(text[:60]) / 2:
        words, length = [letter for word in words for letter in word], 5
    words = words[: near_duplicates.OPENING]
    return set(zip(*(words[i:] for i in range(length)), strict=False)) or {tuple(words)}


@pytest.mark.skipif(not WILDCHAT.exists(), reason='no ../shared/data/wildchat')
def test_no_near_duplicate_opening_crosses_the_split(tmp_path):
    """Compares every two of all 852 real conversations in full."""
    c = config(tmp_path, raw=str(WILDCHAT))
    c.ingest.heldout = 0.3
    counts = ingest.STAGE.run(c)
    assert counts['records_read'] == 852
    conversations = records(c)
    sets = [shingles(record['messages'][0]['content']) for record in conversations]
    alike = across = 0
    for i in range(len(sets)):
        for j in range(i):
            jaccard = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            if jaccard >= 0.7:  # at the threshold of 0.5, MinHash finds about half of them
                alike += 1
                across += conversations[i]['split'] != conversations[j]['split']
    assert alike > 20 and across == 0
    assert 0.2 < np.mean([record['split'] == 'validation' for record in conversations]) < 0.4


@pytest.mark.parametrize(
    'template',
    [
        'Please write an essay on keeping the forests of our country alive, in at least {} words, for pupils of ten',
        '请帮我写一篇关于环境保护的议论文,要求{}字以上,语言优美,有具体的例子,适合高中生阅读。',
        '環境保護についての小論文を書いてください。{}字以上で、美しい言葉を使い、具体的な例を挙げてください。',
        'ช่วยเขียนเรียงความเกี่ยวกับการอนุรักษ์สิ่งแวดล้อมความยาวอย่างน้อย{}คำภาษาสวยงามมีตัวอย่างชัดเจน',
    ],
    ids=['English', 'Chinese', 'Japanese', 'Thai'],
)
def test_a_template_is_one_cluster_in_any_script(tmp_path, template):
    raw = [raw_conversation(f'id{n}', template.format(300 + n), f'So, {n}.', user=f'u{n}') for n in range(60)]
    write_lines(tmp_path / 'raw.jsonl', raw)
    counts = ingest.STAGE.run(config(tmp_path))
    assert counts['clusters'] == 1 and counts['kept_train'] == 60


def test_the_highest_similarity_that_a_config_may_have_is_the_highest_with_bands():
    assert banding(0.96)
    with pytest.raises(ValueError, match='bands are too small'):
        banding(0.97)


@pytest.mark.parametrize('seed', (3, 4))  # seed 4 draws the cluster for the validation split
def test_a_cluster_of_most_conversations_is_not_held_out(tmp_path, seed):
    raw = [raw_conversation(f'like{n}', 'How do I bake a loaf of bread?', f'So, {n}.', user=f'u{n}') for n in range(60)]
    raw += [
        raw_conversation(f'other{n}', f'What is thing {n} of {n * 77} at {n * 7919}?', 'So.', user=f'v{n}')
        for n in range(60)
    ]
    write_lines(tmp_path / 'raw.jsonl', raw)
    c = config(tmp_path)
    c.seed, c.ingest.heldout = seed, 0.4
    counts = ingest.STAGE.run(c)
    assert {record['split'] for record in records(c) if record['id'].startswith('like')} == {'train'}
    assert 10 < counts['kept_validation'] < 40


def test_files_named_by_split_are_the_splits_and_share_nothing(tmp_path):
    folder = tmp_path / 'raw'
    folder.mkdir()
    names_by_split = dict(train=['a', 'b', 'c'], validation=['d'], test=['e'])
    users = dict(a='u', b='v', c='w', d='v', e='x')
    same = 'How do I bake a loaf of rye bread at home?'
    for split, names in names_by_split.items():
        texts = {name: same if name in 'ce' else f'What is thing {name * 9} good for, {name * 5}?' for name in names}
        lines = '\n'.join(
            json.dumps(raw_conversation(name, text, 'So.', user=users[name])) for name, text in texts.items()
        )
        (folder / f'{split}.jsonl.gz').write_bytes(gzip.compress(lines.encode()))
    write_lines(folder / 'part1.jsonl', [raw_conversation('f', 'What is in no split?', 'So.')])
    c = config(tmp_path, raw=str(folder))
    counts = ingest.STAGE.run(c)
    assert counts['files_passed_over'] == 1
    # b's user was held out, and c's opening is in the test split.
    assert {record['id']: record['split'] for record in records(c)} == dict(a='train', d='validation', e='test')
    assert counts['dropped_like_one_held_out'] == 2


def test_files_named_by_split_stand_beside_no_others(tmp_path):
    """Listed one by one, the others could be meant for any split, and held-out text could end up in training."""
    for name in ('train-00000-of-00002.jsonl', 'test-00000-of-00001.jsonl', 'validation.jsonl', 'serving.jsonl'):
        write_lines(tmp_path / name, [raw_conversation(name[:2], f'What is {name} good for?', 'So.', user=name)])
    c = config(tmp_path, raw=f'{tmp_path},{tmp_path / "serving.jsonl"}')
    with pytest.raises(UserError, match=r'test\S+ is named after a split, but \S+serving.jsonl is not: name either'):
        ingest.STAGE.run(c)
    c.data.raw = str(tmp_path)
    assert ingest.STAGE.run(c)['files_passed_over'] == 1
    assert {record['id']: record['split'] for record in records(c)} == dict(tr='train', te='test', va='validation')


def chosen_by_brute_force(raw: list[dict]) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """User, system message and texts of the kept conversations by id, and the counts of the others by reason."""
    once, longest, kept = {}, {}, {}
    for record in raw:
        turns = record['conversation']
        system = [''] if turns[0]['role'] == 'user' else []
        once.setdefault((record['hashed_ip'], *system, *[turn['content'] for turn in turns]), record)
    for content, record in once.items():
        size = len(content)
        continued = any(size < len(other) and other[:size] == content and size % 2 == 0 for other in once)
        if not continued:
            longest[content] = record['conversation_hash']
    for content, name in longest.items():
        kept[name] = max(kept.get(name, ()), content, key=len)  # the first of equally long ones
    dropped = dict(seen_before=len(raw) - len(once), goes_on_in_another=len(once) - len(longest))
    return kept, dropped | dict(id_seen_before=len(longest) - len(kept))


@pytest.mark.parametrize('seed', range(4))
def test_what_is_kept_is_what_brute_force_keeps(tmp_path, seed):
    rng = random.Random(seed)
    texts = [f'{word} {"abcdefgh"[i]}' for i in range(4) for word in ('Tell me of bees', 'And of tea')]
    raw = [
        raw_conversation(
            f'id{rng.randrange(150)}', *rng.choices(texts, k=rng.randint(2, 5)), user=f'u{rng.randrange(3)}'
        )
        for _ in range(200)
    ]
    for record in rng.sample(raw, 50):
        record['conversation'].insert(0, dict(role='system', content=rng.choice(['Be kind.', 'Be short.'])))
    write_lines(tmp_path / 'raw.jsonl', raw)
    c = config(tmp_path)
    c.ingest.similarity = 0.9
    counts = ingest.STAGE.run(c)
    kept, dropped = chosen_by_brute_force(raw)
    by_id = {record['id']: record for record in records(c)}
    texts = {name: [message['content'] for message in record['messages']] for name, record in by_id.items()}
    assert kept == {name: (record['user_id'], record['system'], *texts[name]) for name, record in by_id.items()}
    assert {reason: counts[f'dropped_{reason}'] for reason in dropped} == dropped and nothing_is_lost(counts)
    assert counts['user_turns'] == sum((len(turns) + 1) // 2 for turns in texts.values())
    splits: dict[str, set[str]] = {}
    for record in by_id.values():
        splits.setdefault(record['user_id'], set()).add(record['split'])
    assert all(len(of_user) == 1 for of_user in splits.values())


@pytest.mark.parametrize('edges', [0, 40, 90, 300])
def test_components_of_edges_that_come_in_batches_are_those_of_all(edges):
    rng, count = np.random.default_rng(edges), 100
    ends = rng.integers(count, size=(2, edges))
    batches = [pyarrow.record_batch(list(ends[:, at : at + 7]), ['number', 'first']) for at in range(0, edges, 7)]
    columns = components(count, batches).to_pydict()
    component = {node: {node} for node in range(count)}
    for one, other in ends.T.tolist():
        whole = component[one] | component[other]
        component |= dict.fromkeys(whole, whole)
    label = dict(zip(columns['number'], columns['component'], strict=True))
    assert all({node for node in label if label[node] == label[one]} == component[one] for one in range(count))


TEMPLATE = 'As a generator of prompts for pictures you will write four prompts of {} with a lens of {} millimetres'
WORDS = ('bees', 'teas', 'seas', 'keys', 'fees', 'peas', 'leas', 'tees')


def opens_like_many(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return f'What is thing {rng.randrange(10**6)} of {rng.randrange(10**6)} good for?'
    return rng.choice(('hello', TEMPLATE, TEMPLATE + ' at night')).format(rng.choice(WORDS), rng.randrange(3))


@pytest.mark.parametrize(('seed', 'most'), [(0, 1), (1, 5), (2, 5), (3, 30)])
def test_of_openings_that_are_nearly_the_same_so_many_are_kept(tmp_path, seed, most):
    rng = random.Random(seed)
    raw = [raw_conversation(f'id{n}', opens_like_many(rng), f'So, {n}.', user=f'u{n}') for n in range(300)]
    write_lines(tmp_path / 'raw.jsonl', raw)
    c = config(tmp_path)
    c.ingest.heldout, c.ingest.max_nearly_same = 0.5, 0
    counts = ingest.STAGE.run(c)
    assert 'dropped_nearly_the_same' not in counts
    alike: dict[int, list[str]] = {}
    assert min(counts['kept_train'], counts['kept_validation']) > 30
    every = {record['id']: record for record in records(c)}
    for name, record in every.items():
        for band in bands(record['messages'][0]['content'], *banding(c.ingest.similarity)):
            alike.setdefault(band, []).append(name)
    over = {name for names in alike.values() for name in sorted(names, key=digest)[most:]}
    c.ingest.max_nearly_same = most
    counts = ingest.STAGE.run(c, overwrite=True)
    assert records(c) == [record for name, record in every.items() if name not in over]
    assert counts['dropped_nearly_the_same'] == len(over) > 20 and nothing_is_lost(counts)
    assert max(len(set(names) - over) for names in alike.values()) == most
    rng.shuffle(raw)
    write_lines(tmp_path / 'raw.jsonl', raw)
    ingest.STAGE.run(c, overwrite=True)
    assert {record['id'] for record in records(c)} == set(every) - over


def test_a_user_s_different_requests_are_not_nearly_the_same(tmp_path):
    requests = [f'What is thing {n * 77} of {n * 7919} good for?' for n in range(30)]
    write_lines(tmp_path / 'raw.jsonl', [raw_conversation(f'id{n}', text, 'So.') for n, text in enumerate(requests)])
    c = config(tmp_path)
    c.ingest.max_nearly_same = 1
    assert ingest.STAGE.run(c)['kept_train'] == 30


def test_of_a_user_the_newest_are_kept(tmp_path):
    def on(day: int, user: str) -> dict:
        turns = [('user', f'Thing {user} {day}?'), ('assistant', 'So.')]
        return wildchat_record(dict(id=user), turns, day, 'model') | dict(conversation_hash=f'{user}{day}')

    write_lines(tmp_path / 'raw.jsonl', [on(day, user) for day in (3, 1, 4, 2) for user in 'ab'])
    c = config(tmp_path)
    c.ingest.max_per_user = 2
    counts = ingest.STAGE.run(c)
    assert counts['dropped_over_max_per_user'] == 4 and nothing_is_lost(counts)
    assert {record['id'] for record in records(c)} == {'a3', 'a4', 'b3', 'b4'}


@pytest.mark.parametrize(('seed', 'most', 'salted'), [(0, 0, False), (1, 40, False), (2, 0, True), (3, 25, True)])
def test_who_opts_out_changes_nothing_for_the_others(tmp_path, seed, most, salted):
    """Users share ids, openings and texts, so those who opt out could affect many others."""
    rng = random.Random(seed)
    topics = [f'Tell me all about the {word} of old' for word in ('bees', 'teas', 'seas', 'keys', 'fees', 'peas')]

    def one(user: str) -> dict:
        turns = [('user', f'{rng.choice(topics)} {"and new" * rng.randrange(2)}')] + [('assistant', 'So.')]
        turns += [('user', f'More {rng.choice("ab")}!'), ('assistant', 'S.')] * rng.randrange(2)
        name = f'id{rng.randrange(90)}'
        return wildchat_record(dict(id=user), turns, rng.randrange(30), 'model') | dict(conversation_hash=name)

    raw = [one(f'u{rng.randrange(40)}') for _ in range(120)]
    write_lines(tmp_path / 'raw.jsonl', raw)

    def run(name: str, **settings):
        c = config(tmp_path, conversations=str(tmp_path / name / 'out'))
        c.ingest.update(dict(max_conversations=most, max_per_user=2, max_nearly_same=8, heldout=0.3) | settings)
        c.ingest.salt = str(tmp_path / 'salt') if salted else ''
        counts = ingest.STAGE.run(c)
        assert nothing_is_lost(counts)
        return counts, output(c).splitlines(), c

    before, lines, _ = run('all')
    assert before['dropped_nearly_the_same'] > 5
    users = sorted({json.loads(line)['user_id'] for line in lines})
    gone = set(rng.sample(users, len(users) // 3))
    (tmp_path / 'opt_out.txt').write_text('\n'.join(['', *gone, 'nobody  ']))
    counts, rest, c = run('rest', opt_out=str(tmp_path / 'opt_out.txt'))
    assert rest == [line for line in lines if json.loads(line)['user_id'] not in gone]
    assert counts['dropped_opted_out'] == len(lines) - len(rest) > 5
    dropped = {name: n for name, n in counts.items() if name.startswith('dropped_') and name != 'dropped_opted_out'}
    assert dropped == {name: n for name, n in before.items() if name.startswith('dropped_')}
    key = {user_key(record['hashed_ip'], record['header'], read_salt(c.ingest.salt)): record for record in raw}
    hashes = {key[user]['hashed_ip'] for user in gone}
    write_lines(tmp_path / 'raw.jsonl', [record for record in raw if record['hashed_ip'] not in hashes])
    assert run('as if they had never been')[1] != rest  # so that the test can fail
