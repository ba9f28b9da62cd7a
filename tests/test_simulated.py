"""The rules that keep simulated users honest."""

import ast
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import tiny

from data_pipelines.core.stage import write_records
from data_pipelines.oracle_scores import oracle_score
from data_pipelines.simulator.conditions import conditions
from data_pipelines.simulator.requests import PHRASINGS, SPLITS, TOPICS, requests
from data_pipelines.simulator.summary import summarise
from data_pipelines.simulator.tastes import TASTES, opposite, satisfaction, valid, words
from data_pipelines.sources import simulated
from data_pipelines.teacher.prompts import _FOLDER
from rlhi_jax.config import base_config
from rlhi_jax.io.errors import NothingToEvaluate, UserError

PAIRS = list(TASTES)
SIDES = [(pair, side) for pair in TASTES for side in TASTES[pair]]
PLAIN = 'Bees are insects that live together in a hive. They visit flowers, gather nectar and make honey from it.'


def config(**settings):
    c = base_config()
    c.simulated.update(settings)
    return c


def asked_prompts(c):
    """A config's users, and all that they ask as records of prompts.jsonl."""
    users = {simulated.hashed(user['id']): user for user in simulated.population(c)}
    prompts = [
        dict(id=f'{user["id"]}/{n}', user_id=name, persona='', messages=[dict(content=request.text)])
        for name, user in users.items()
        for n, request in enumerate(simulated.asked(c, user))
    ]
    return users, prompts


def disjoint(parts) -> bool:
    return all(not set(a) & set(b) for a, b in itertools.combinations(parts, 2))


def threes(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return set(zip(said, said[1:], said[2:], strict=False))


def test_splits_share_no_request_wording_or_combination():
    assert disjoint([TOPICS[split] for split in SPLITS]) and disjoint([PHRASINGS[split] for split in SPLITS])
    for pair, side in SIDES:
        taste = TASTES[pair][side]
        assert set(taste.personas) == {*SPLITS}
        assert disjoint(taste.personas.values())
        assert disjoint([taste.complaints[split] for split in SPLITS])
        # Not a matter of one word changed: no three words in a row are the same.
        assert disjoint([{three for text in said for three in threes(text)} for said in taste.personas.values()])
    combined = [[json.dumps(tastes, sort_keys=True) for tastes in simulated.combinations(PAIRS, s)] for s in SPLITS]
    assert disjoint(combined) and all(combined)
    texts = [{request.text for request in requests(split)} for split in SPLITS]
    assert disjoint(texts)


@pytest.mark.parametrize('split', SPLITS)
def test_no_taste_tells_of_another(split):
    """In each split every side stands beside each side of another pair equally often, so only the persona tells."""
    counts = {}
    for tastes in simulated.combinations(PAIRS, split):
        for a, b in itertools.combinations(sorted(tastes.items()), 2):
            counts[a, b] = counts.get((a, b), 0) + 1
    assert len(set(counts.values())) == 1
    assert len(counts) == len(list(itertools.combinations(PAIRS, 2))) * 4


def test_held_out_tastes_occur_in_the_test_split_alone():
    c = config(pairs='length,layout,address', held_out='person')
    by_split = {split: set() for split in SPLITS}
    for user in simulated.population(c):
        by_split[user['split']] |= set(user['tastes'])
    assert by_split['test'] == {'length', 'layout', 'address', 'person'}
    assert by_split['train'] == by_split['gate'] == {'length', 'layout', 'address'}
    few = config(pairs='length,layout,address', held_out='person', users=dict(train=0, gate=0, test=36))
    assert sum('person' in user['tastes'] for user in simulated.population(few)) == 12
    with pytest.raises(UserError, match='config.simulated.pairs'):
        simulated.population(config(pairs='length,layout'))


def test_only_the_simulator_and_the_evaluator_know_tastes():
    allowed = {'data_pipelines/sources/simulated.py', 'data_pipelines/satisfaction.py'}
    found = set()
    for path in [*tiny.ROOT.glob('data_pipelines/**/*.py'), *tiny.ROOT.glob('rlhi_jax/**/*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, 'module', '') or ''
            if any('tastes' in name for name in (module, *names)):
                found.add(str(path.relative_to(tiny.ROOT)))
    assert found == allowed


def test_teacher_prompts_list_no_tastes():
    said = ' '.join(path.read_text().lower() for path in _FOLDER.glob('*.jinja'))
    tastes = ('short', 'brief', 'long', 'detail', 'list', 'bullet', 'prose', 'impersonal', 'directly', '"you"')
    for word in (*tastes, 'child', 'histor'):
        assert word not in said


def test_constant_and_echo_replies_satisfy_nobody():
    every = [request for split in SPLITS for request in requests(split)]
    constants = [
        'I am happy to help you with that. Please tell me more about what you would like to know, and I will try.',
        PLAIN,
        '1. It is known all over the world.\n2. Many people like it a lot.\n3. You can learn more about it in a book.',
    ]
    replies = [lambda request, text=text: text for text in constants]
    replies += [lambda request: request.text, lambda request: ' '.join([request.text] * 5)]
    replies += [lambda request, text=text: f'{request.text} {text}' for text in constants]
    for reply in replies:
        scores = [satisfaction(reply(q), q, True, {pair: side}) for q in every for pair, side in SIDES]
        assert sum(scores) / len(scores) <= 0.05


def test_what_a_valid_reply_is():
    bees = next(request for request in requests('train') if request.about == 'bee')
    assert valid(PLAIN, bees, True)
    assert not valid(PLAIN, bees, False)  # cut off
    assert not valid('Bees are insects that make honey.', bees, True)  # too short
    assert not valid('Bees make honey in a hive. ' * 6, bees, True)  # repetitive
    cats = next(request for request in requests('train') if request.about == 'cat')
    assert not valid(PLAIN, cats, True)  # off topic


def test_the_oracle_ranks_by_tastes_and_lets_no_invalid_reply_win():
    bees = next(request for request in requests('train') if request.about == 'bee')
    tastes = dict(length='short', layout='prose')
    longer = f'{PLAIN} A colony keeps warm in winter, feeds its queen, guards the door, and dances to tell of flowers.'
    items = '\n- '.join(['', *longer.split('. ')])
    best_first = [
        (PLAIN, True),  # valid, meets both
        (longer, True),  # valid, meets one
        ('Bees make honey.', True),  # too short to be valid, meets both
        (items, True),  # valid, meets none; on a par with an invalid one that meets half
        ('1. Bee\n2. Bee\n' * 20, False),  # invalid, meets none
    ]
    scores = [oracle_score(reply, bees, finished, tastes) for reply, finished in best_first]
    assert scores[:2] == [1.0, 0.5] and scores[3] == 0.0
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
    assert oracle_score(longer * 3, bees, True, tastes) == scores[3]


@pytest.mark.parametrize(('pair', 'good', 'bad'), [
    ('length', 'A bee makes honey.', 'A bee makes honey. ' * 20),
    ('layout', '1. A bee flies.\n2. A bee hums.', 'A bee flies and hums.'),
    ('address', 'You can keep bees.', 'People can keep bees.'),
    ('person', 'I keep bees.', 'Some people keep bees.'),
    ('angle', 'Children like bees.', 'Bees have a long history.'),
])  # fmt: skip
def test_checks(pair, good, bad):
    first, second = TASTES[pair].values()
    assert first.check(good) and not first.check(bad)
    assert second.check(bad) and not second.check(good)
    a, b = TASTES[pair]
    assert opposite(pair, a) == b and opposite(pair, b) == a


def test_a_mind_that_changes_and_one_that_depends():
    reasons, others = ([q for q in requests('train') if (simulated.KIND in q.text) is kind] for kind in (True, False))
    request = others[0]
    flips = dict(id='u', split='train', tastes={'length': 'short'}, flips='length', depends='')
    assert [simulated.tastes_at(flips, n, 4, request)['length'] for n in range(5)] == ['long'] * 2 + ['short'] * 3
    assert all(0 < sum(simulated.KIND in phrasing for phrasing in PHRASINGS[s]) < len(PHRASINGS[s]) for s in SPLITS)
    depends = flips | dict(flips='', depends='length')
    assert simulated.tastes_at(depends, 0, 4, request) == {'length': 'long'}
    assert simulated.tastes_at(depends, 0, 4, reasons[0]) == {'length': 'short'}


@pytest.mark.parametrize('split', ['gate', 'test'])
def test_the_opposing_persona_asks_for_the_opposite(split):
    c = config(users=dict(train=0, gate=0, test=0) | {split: 24}, conversations=0, prompts=2)
    users, prompts = asked_prompts(c)
    found = conditions(c, users, prompts, Counter())
    assert len(found) == len(prompts) == 48
    for prompt in prompts:
        wanted = {pair: opposite(pair, side) for pair, side in users[prompt['user_id']]['tastes'].items()}
        said = found[prompt['id']]['opposing']
        assert all(any(w in said for w in TASTES[pair][side].personas[split]) for pair, side in wanted.items())


def test_everybody_in_the_test_split_has_an_opposing_user(tmp_path):
    """Whose inferred persona is the opposing one; users of the gate split, balanced otherwise, have none."""
    for split in ('gate', 'test'):
        c = config(users=dict(train=0, gate=0, test=0) | {split: 24}, conversations=0, prompts=2)
        users, prompts = asked_prompts(c)
        folder = tmp_path / split
        folder.mkdir()
        (folder / 'manifest.json').write_text('{}')
        inferred = [dict(user_id=name, persona=json.dumps(user['tastes'])) for name, user in users.items()]
        write_records(folder / 'users.jsonl', inferred)
        c.data.personas = str(folder)
        found = conditions(c, users, prompts, Counter())
        assert len(found) == (len(prompts) if split == 'test' else 0)
        for said in found.values():
            own, opposing = json.loads(said['own']), json.loads(said['opposing'])
            assert own.keys() == opposing.keys() and not own.items() & opposing.items()


def test_an_opposing_user_is_steady_and_has_a_persona(tmp_path):
    """To one who changes their mind or depends on the request, somebody who likes the opposite of what they now do."""
    c = config(users=dict(train=0, gate=0, test=24), conversations=4, prompts=2, special_every=12)
    users, prompts = asked_prompts(c)
    unknown = list(users)[5]
    known = [dict(user_id=name, persona=user['id']) for name, user in users.items() if name != unknown]
    (tmp_path / 'manifest.json').write_text('{}')
    write_records(tmp_path / 'users.jsonl', known)
    c.data.personas, counts = str(tmp_path), Counter()
    found = conditions(c, users, prompts, counts)
    by_id = {user['id']: user for user in users.values()}
    assert sum(bool(user['flips'] or user['depends']) for user in users.values()) == 4
    assert counts['dropped_no_persona'] > 0 and counts.total() == len(prompts) - len(found)
    for prompt in prompts:
        if prompt['id'] not in found:
            continue
        said, user = found[prompt['id']], users[prompt['user_id']]
        other = by_id[said['opposing']]
        request = next(q for q in requests('test') if q.text == prompt['messages'][0]['content'])
        now = simulated.tastes_at(user, int(prompt['id'].rsplit('/', 1)[1]), 4, request)
        assert said['own'] == user['id'] and not other['flips'] and not other['depends']
        assert other['tastes'] == {pair: opposite(pair, side) for pair, side in now.items()}


def test_summary_of_satisfaction_against_plain_means(tmp_path):
    """Gaps by model, their change, and gaps by pair; users with a held-out taste stay out of the headline."""
    rng = np.random.default_rng(0)
    records = {}
    for model in ('before', 'after'):
        records[model] = []
        for user in range(6):
            pairs = ('length', 'person') if user == 5 else ('length', 'layout')
            for prompt, condition in itertools.product(range(3), ('own', 'opposing')):
                met = {pair: float(rng.integers(2)) for pair in pairs}
                one = dict(id=f'u{user}/{prompt}', user_id=f'u{user}', condition=condition, valid=any(met.values()))
                records[model].append(one | dict(met=met, satisfaction=sum(met.values()) / 2))
        (tmp_path / model).mkdir()
        write_records(tmp_path / model / 'records.jsonl', records[model])
    found = summarise({model: tmp_path / model for model in records}, ['person'])

    def gap(model, value, chosen):
        by = {
            condition: [value(r) for r in records[model] if r['condition'] == condition and chosen(r)]
            for condition in ('own', 'opposing')
        }
        return np.mean(by['own']) - np.mean(by['opposing'])

    def known(record):
        return 'person' not in record['met']

    assert found['prompts'] == 15 and found['users'] == 5
    gaps = [gap(model, lambda r: r['satisfaction'], known) for model in records]
    assert [found['models'][model]['gap']['mean'] for model in records] == pytest.approx(gaps)
    assert found['gap_change']['mean'] == pytest.approx(gaps[1] - gaps[0])
    assert found['gap_change']['low'] <= gaps[1] - gaps[0] <= found['gap_change']['high']
    person = found['by_pair']['person']
    assert person['held_out'] and person['prompts'] == 3 and not found['by_pair']['length']['held_out']
    expected = gap('after', lambda r: r['met']['person'], lambda r: 'person' in r['met'])
    assert person['models']['after']['gap']['mean'] == pytest.approx(expected)


@pytest.mark.parametrize('answered', [('empty',), ('own',), ()])
def test_a_model_that_answered_under_no_persona_is_not_evaluated(tmp_path, answered):
    for model, kinds in dict(before=('own', 'opposing', 'empty'), after=answered).items():
        (tmp_path / model).mkdir()
        one = dict(id='u/0', user_id='u', valid=True, met=dict(length=1.0), satisfaction=1.0)
        write_records(tmp_path / model / 'records.jsonl', [one | dict(condition=kind) for kind in kinds])
    with pytest.raises(NothingToEvaluate, match='after has no reply .*: raise config.sampler.prompt_tokens'):
        summarise({model: tmp_path / model for model in ('before', 'after')})
