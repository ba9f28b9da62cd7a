"""The rules that keep simulated users honest."""

import ast
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import tiny

from data_pipelines.core.record_files import write_records
from data_pipelines.core.records import SPLITS
from data_pipelines.oracle_scores import oracle_score
from data_pipelines.satisfaction import SAMPLED_AS
from data_pipelines.simulator.conditions import opposing_user, personas_by_condition
from data_pipelines.simulator.requests import PHRASINGS, TOPICS, requests
from data_pipelines.simulator.summary import summarise
from data_pipelines.simulator.tastes import TASTES, opposite, opposites, satisfaction, valid
from data_pipelines.simulator.users import KIND, combinations, hashed, population, requests_of, tastes_at
from data_pipelines.teacher.prompts import _FOLDER
from data_pipelines.text.degenerate import words
from rlhi_jax.config import base_config
from rlhi_jax.io.errors import NothingToEvaluate, UserError

SIDES = [(taste, side) for taste in TASTES for side in TASTES[taste]]
PLAIN = 'Bees are insects that live together in a hive. They visit flowers, gather nectar and make honey from it.'


def config(**settings):
    c = base_config()
    c.simulated.update(settings)
    return c


def asked_prompts(c):
    """A config's users by user id, and all their requests as records of prompts.jsonl."""
    users = {hashed(user['id']): user for user in population(c)}
    prompts = [
        dict(id=f'{user["id"]}/{n}', user_id=name, persona='', messages=[dict(content=request.text)])
        for name, user in users.items()
        for n, request in enumerate(requests_of(c, user))
    ]
    return users, prompts


def disjoint(parts) -> bool:
    return all(not set(a) & set(b) for a, b in itertools.combinations(parts, 2))


def threes(text: str) -> set[tuple[str, ...]]:
    all_words = words(text)
    return set(zip(all_words, all_words[1:], all_words[2:], strict=False))


def test_splits_share_no_request_wording_or_combination():
    assert disjoint([TOPICS[split] for split in SPLITS]) and disjoint([PHRASINGS[split] for split in SPLITS])
    for taste, side in SIDES:
        personas, complaints = TASTES[taste][side].personas, TASTES[taste][side].complaints
        assert set(personas) == {*SPLITS}
        assert disjoint(personas.values())
        assert disjoint([complaints[split] for split in SPLITS])
        # They differ in more than single words: no three words in a row are the same.
        assert disjoint([{three for text in texts for three in threes(text)} for texts in personas.values()])
    combined = [
        [json.dumps(tastes, sort_keys=True) for tastes in combinations(list(TASTES), split)] for split in SPLITS
    ]
    assert disjoint(combined) and all(combined)
    texts = [{request.text for request in requests(split)} for split in SPLITS]
    assert disjoint(texts)


@pytest.mark.parametrize('split', SPLITS)
def test_no_taste_tells_of_another(split):
    """In each split every side occurs equally often with each side of another taste: only the persona tells it."""
    counts = {}
    for tastes in combinations(list(TASTES), split):
        for a, b in itertools.combinations(sorted(tastes.items()), 2):
            counts[a, b] = counts.get((a, b), 0) + 1
    assert len(set(counts.values())) == 1
    assert len(counts) == len(list(itertools.combinations(TASTES, 2))) * 4


def test_held_out_tastes_occur_in_the_test_split_alone():
    c = config(tastes='length,layout,address', held_out='person')
    by_split = {split: set() for split in SPLITS}
    for user in population(c):
        by_split[user['split']] |= set(user['tastes'])
    assert by_split['test'] == {'length', 'layout', 'address', 'person'}
    assert by_split['train'] == by_split['validation'] == {'length', 'layout', 'address'}
    few = config(tastes='length,layout,address', held_out='person', users=dict(train=0, validation=0, test=36))
    assert sum('person' in user['tastes'] for user in population(few)) == 12
    with pytest.raises(UserError, match='config.simulated.tastes'):
        population(config(tastes='length,layout'))


def test_only_the_simulator_and_the_evaluator_know_tastes():
    allowed = {'data_pipelines/sources/simulated.py'}
    allowed |= {f'data_pipelines/{stage}.py' for stage in ('satisfaction', 'oracle_scores')}
    allowed |= {f'data_pipelines/simulator/{module}.py' for module in ('conditions', 'files', 'users')}
    importers = set()
    for path in [*tiny.ROOT.glob('data_pipelines/**/*.py'), *tiny.ROOT.glob('rlhi_jax/**/*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, 'module', '') or ''
            if any('simulator.tastes' in f'{module}.{name}' for name in names):
                importers.add(str(path.relative_to(tiny.ROOT)))
    assert importers == allowed


def test_teacher_prompts_list_no_tastes():
    text = ' '.join(path.read_text().lower() for path in _FOLDER.glob('*.jinja'))
    tastes = ('short', 'brief', 'long', 'detail', 'list', 'bullet', 'prose', 'impersonal', 'directly', '"you"')
    for word in (*tastes, 'child', 'histor'):
        assert word not in text


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
        scores = [satisfaction(reply(q), q, True, {taste: side}) for q in every for taste, side in SIDES]
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


@pytest.mark.parametrize(('taste', 'good', 'bad'), [
    ('length', 'A bee makes honey.', 'A bee makes honey. ' * 20),
    ('layout', '1. A bee flies.\n2. A bee hums.', 'A bee flies and hums.'),
    ('address', 'You can keep bees.', 'People can keep bees.'),
    ('person', 'I keep bees.', 'Some people keep bees.'),
    ('angle', 'Children like bees.', 'Bees have a long history.'),
])  # fmt: skip
def test_checks(taste, good, bad):
    first, second = TASTES[taste].values()
    assert first.check(good) and not first.check(bad)
    assert second.check(bad) and not second.check(good)
    a, b = TASTES[taste]
    assert opposite(taste, a) == b and opposite(taste, b) == a


def test_a_mind_that_changes_and_one_that_depends():
    reasons, others = ([q for q in requests('train') if (KIND in q.text) is kind] for kind in (True, False))
    request = others[0]
    flips = dict(id='u', split='train', tastes={'length': 'short'}, flips='length', depends='')
    assert [tastes_at(flips, n, 4, request)['length'] for n in range(5)] == ['long'] * 2 + ['short'] * 3
    assert all(0 < sum(KIND in phrasing for phrasing in PHRASINGS[s]) < len(PHRASINGS[s]) for s in SPLITS)
    depends = flips | dict(flips='', depends='length')
    assert tastes_at(depends, 0, 4, request) == {'length': 'long'}
    assert tastes_at(depends, 0, 4, reasons[0]) == {'length': 'short'}


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_the_other_persona_asks_for_the_opposite(split):
    c = config(users=dict(train=0, validation=0, test=0) | {split: 24}, conversations=0, prompts=2)
    users, prompts = asked_prompts(c)
    personas = personas_by_condition(c, users, prompts, Counter())
    assert len(personas) == len(prompts) == 48
    for prompt in prompts:
        wanted = opposites(users[prompt['user_id']]['tastes'])
        persona = personas[prompt['id']]['other']
        assert all(any(w in persona for w in TASTES[taste][side].personas[split]) for taste, side in wanted.items())


def test_everybody_in_the_test_split_has_an_opposite_user(tmp_path):
    """That user's inferred persona is the other one; the validation split, balanced differently, has none."""
    for split in ('validation', 'test'):
        c = config(users=dict(train=0, validation=0, test=0) | {split: 24}, conversations=0, prompts=2)
        users, prompts = asked_prompts(c)
        folder = tmp_path / split
        folder.mkdir()
        (folder / 'manifest.json').write_text('{}')
        inferred = [dict(user_id=name, persona=json.dumps(user['tastes'])) for name, user in users.items()]
        write_records(folder / 'users.jsonl', inferred)
        c.data.personas = str(folder)
        personas = personas_by_condition(c, users, prompts, Counter())
        assert len(personas) == (len(prompts) if split == 'test' else 0)
        for by_condition in personas.values():
            own, other = json.loads(by_condition['own']), json.loads(by_condition['other'])
            assert own.keys() == other.keys() and not own.items() & other.items()


def test_an_opposite_user_is_steady_and_has_a_persona(tmp_path):
    """Users who change their mind or depend on the request are compared with one who dislikes what they like now."""
    c = config(users=dict(train=0, validation=0, test=24), conversations=4, prompts=2, special_every=12)
    users, prompts = asked_prompts(c)
    unknown = list(users)[5]
    known = [dict(user_id=name, persona=user['id']) for name, user in users.items() if name != unknown]
    (tmp_path / 'manifest.json').write_text('{}')
    write_records(tmp_path / 'users.jsonl', known)
    c.data.personas, counts = str(tmp_path), Counter()
    personas = personas_by_condition(c, users, prompts, counts)
    by_id = {user['id']: user for user in users.values()}
    assert sum(bool(user['flips'] or user['depends']) for user in users.values()) == 4
    assert counts['dropped_no_persona'] > 0 and counts.total() == len(prompts) - len(personas)
    for prompt in prompts:
        if prompt['id'] not in personas:
            continue
        by_condition, user = personas[prompt['id']], users[prompt['user_id']]
        other = by_id[by_condition['other']]
        request = next(q for q in requests('test') if q.text == prompt['messages'][0]['content'])
        now = tastes_at(user, int(prompt['id'].rsplit('/', 1)[1]), 4, request)
        assert by_condition['own'] == user['id'] and not other['flips'] and not other['depends']
        assert other['tastes'] == opposites(now)


def test_the_other_user_opposes_as_many_tastes_as_possible_and_shares_none():
    tastes = dict(
        exact=dict(length='long', layout='prose', angle='history'),
        silent=dict(length='long', layout='prose', address='you'),
        sharing=dict(length='long', layout='prose', angle='children'),
        single=dict(length='long'),
        unrelated=dict(address='you'),
    )
    wanted_least = dict(length='long', layout='prose', angle='history')
    everybody = dict.fromkeys(tastes, 'I like something.')
    for expected in ('exact', 'silent', None):
        assert opposing_user('q', wanted_least, tastes, everybody) == expected
        tastes.pop(expected, None)
    assert opposing_user('q', dict(length='long'), tastes, everybody) == 'single'
    twins = {name: dict(length='long') for name in ('a', 'b', 'c')}
    known = dict(a='x', b='x', c='')
    met = [opposing_user(str(number), dict(length='long'), twins, known) for number in range(50)]
    assert met == [opposing_user(str(number), dict(length='long'), twins, known) for number in range(50)]
    assert 10 < met.count('a') < 40 and 'c' not in met


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_every_user_with_several_tastes_can_meet_a_user_who_opposes_them(split):
    choices = [choice for choice in combinations(['length', 'layout', 'address', 'angle'], split) if len(choice) > 1]
    tastes = {str(number): choice for number, choice in enumerate(choices)}
    for choice in choices:
        other = tastes[opposing_user('q', opposites(choice), tastes, {})]
        assert len(other.items() & opposites(choice).items()) == 2 and not other.items() & choice.items()


def test_conditions_keep_their_seeds():
    """Prompt ids seed the sampler; `opposing` was the name of `other` when results were measured."""
    assert dict(own='own', other='opposing', empty='empty') == SAMPLED_AS


def test_summary_of_satisfaction_against_plain_means(tmp_path):
    """Gaps by model, their change, and gaps by taste; users with a held-out taste stay out of the headline."""
    rng = np.random.default_rng(0)
    records = {}
    for model in ('before', 'after'):
        records[model] = []
        for user in range(6):
            tastes = ('length', 'person') if user == 5 else ('length', 'layout')
            for prompt, condition in itertools.product(range(3), ('own', 'other')):
                met = {taste: float(rng.integers(2)) for taste in tastes}
                one = dict(id=f'u{user}/{prompt}', user_id=f'u{user}', condition=condition, valid=any(met.values()))
                records[model].append(one | dict(met=met, satisfaction=sum(met.values()) / 2))
        (tmp_path / model).mkdir()
        write_records(tmp_path / model / 'records.jsonl', records[model])
    summary = summarise({model: tmp_path / model for model in records}, ['person'])

    def gap(model, value, chosen):
        by = {
            condition: [value(r) for r in records[model] if r['condition'] == condition and chosen(r)]
            for condition in ('own', 'other')
        }
        return np.mean(by['own']) - np.mean(by['other'])

    def known(record):
        return 'person' not in record['met']

    assert summary['prompts'] == 15 and summary['users'] == 5
    gaps = [gap(model, lambda r: r['satisfaction'], known) for model in records]
    assert [summary['models'][model]['gap']['mean'] for model in records] == pytest.approx(gaps)
    assert set(summary['models']['after']) == {'own', 'other', 'gap', 'valid', 'valid_other', 'gap_of_valid'}
    for field, condition in (('valid', 'own'), ('valid_other', 'other')):
        share = [r['valid'] for r in records['after'] if r['condition'] == condition and known(r)]
        assert summary['models']['after'][field]['mean'] == pytest.approx(np.mean(share))
    of_valid = [gap(model, lambda r: r['satisfaction'], lambda r: known(r) and r['valid']) for model in records]
    assert [summary['models'][model]['gap_of_valid']['mean'] for model in records] == pytest.approx(of_valid)
    change = summary['gap_of_valid_change']
    assert (
        change['mean'] == pytest.approx(of_valid[1] - of_valid[0]) and change['low'] < change['mean'] < change['high']
    )
    assert summary['gap_change']['mean'] == pytest.approx(gaps[1] - gaps[0])
    assert summary['gap_change']['low'] <= gaps[1] - gaps[0] <= summary['gap_change']['high']
    person = summary['by_taste']['person']
    assert person['held_out'] and person['prompts'] == 3 and not summary['by_taste']['length']['held_out']
    expected = gap('after', lambda r: r['met']['person'], lambda r: 'person' in r['met'])
    assert person['models']['after']['gap']['mean'] == pytest.approx(expected)


def test_valid_replies_to_few_users_give_no_gap(tmp_path):
    one = dict(met=dict(length=0.0), satisfaction=0.0)
    for model in ('before', 'after'):
        (tmp_path / model).mkdir()
        records = [
            one | dict(id=f'u{user}/0', user_id=f'u{user}', condition=condition, valid=condition == 'other' or user < 4)
            for user in range(9)
            for condition in ('own', 'other')
        ]
        write_records(tmp_path / model / 'records.jsonl', records)
    summary = summarise({model: tmp_path / model for model in ('before', 'after')})
    assert 'gap' in summary['models']['after'] and 'gap_of_valid' not in summary['models']['after']
    assert 'gap_of_valid_change' not in summary


@pytest.mark.parametrize('answered', [('empty',), ('own',), ()])
def test_a_model_that_answered_under_no_persona_is_not_evaluated(tmp_path, answered):
    for model, kinds in dict(before=('own', 'other', 'empty'), after=answered).items():
        (tmp_path / model).mkdir()
        one = dict(id='u/0', user_id='u', valid=True, met=dict(length=1.0), satisfaction=1.0)
        write_records(tmp_path / model / 'records.jsonl', [one | dict(condition=kind) for kind in kinds])
    with pytest.raises(NothingToEvaluate, match="'after' lacks replies .*: raise config.sampler.prompt_tokens"):
        summarise({model: tmp_path / model for model in ('before', 'after')})
