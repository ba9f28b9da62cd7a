"""The gate: its rules, its probes, and what it measures of two policies, against single plain computations."""

import itertools

import numpy as np
import pytest
import tiny

from data_pipelines import gate
from data_pipelines.core.record_files import load_records, write_records
from data_pipelines.gates.claims import AGREES, DISAGREES, FALSE_CLAIMS, asked
from data_pipelines.gates.instructions import INSTRUCTIONS
from data_pipelines.gates.verdict import Gain, Measure, measure, verdict
from rlhi_jax.config import base_config
from rlhi_jax.config.loop_paths import GATE_USERS
from rlhi_jax.data.rows import capacities
from rlhi_jax.evaluation.statistics import MIN_USERS
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.rounds.in_force import put_in_force
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.tokenizers import load_tokenizer

REPLIES = (  # for each instruction, a reply that follows it, and one that does not
    ('Rome.', 'It is Rome.'),
    ('Yes.', 'Yes, it is.'),
    ('8', 'A spider has 8 legs.'),
    ('Leaves turn red and fall.', 'Leaves fall. ' * 11),
    ('A place to read. ' * 15, 'A place to read.'),
    ('The sea is deep. It is salty.', 'The sea is deep.'),
    ('We sleep to rest.', 'We rest. We dream.'),
    ('- figs\n- pears\n- plums', '- figs\n- pears'),
    ('1. saw\n2. axe\n3. file\n4. awl', '- saw\n- axe\n- file\n- awl'),
    ('red, blue, green', 'red\nblue\ngreen'),
    ('Bread is baked dough.', 'Bread is warm, soft and good.'),
    ('IT HAS TWO WHEELS.', 'It has TWO wheels.'),
    ('it is water that flows.', 'It is water.'),
    ('Indeed, bees make it.', 'Bees make it.'),
    ('Tea is a drink. That is all.', 'That is all. Tea is a drink.'),
    ('"Someone who stays."', 'A friend is "someone".'),
    ('A lantern hangs by the inn.', 'Lights hang by the inn.'),
    ('It has trees.', 'It has flowers.'),
    ('Snow falls.\n\nIt is cold.', 'Snow falls.\nIt is cold.'),
    ('```json\n{"name": "Ada", "age": 36}\n```', '{"name": "Ada"}'),
    ('It moves us. What moves you?', 'Why? It moves us.'),
    ('<<Rain>>\nDrops fall.', '<Rain>\nDrops fall.'),
    ('One.\nTwo.\n\nThree.\nFour.', 'One.\nTwo.\nThree.'),
    ('It shows the hour.', 'It shows 12 hours.'),
)
SURE = dict(mean=0.2, low=0.1, high=0.3)


@pytest.mark.parametrize(('number', 'replies'), enumerate(REPLIES))
def test_instructions(number, replies):
    follows = INSTRUCTIONS[number].followed
    assert follows(replies[0]) and not follows(replies[1]) and not follows('')


def test_every_instruction_is_tested():
    assert len(REPLIES) == len(INSTRUCTIONS)


def test_as_many_users_are_asked_as_an_interval_needs():
    assert GATE_USERS == MIN_USERS


def decided(gain=SURE, users=9, measures=None, length=1.0, kl=0.1):
    gain = gain and Gain('the gap', users, gain)
    return verdict(gain, measures or {}, length, kl, base_config().gate)


def changed(mean, low, high, more_is_better=True, units=9):
    return dict(finished=Measure(0.5, 0.5 + mean, dict(mean=mean, low=low, high=high), units, more_is_better))


@pytest.mark.parametrize(
    ('outcome', 'why'),
    [
        (decided(), 'the gap is 0.200'),
        (decided(measures=dict(finished=None)), 'the gap is'),
        (decided(measures=changed(-0.2, -0.5, 0.1)), 'the gap is'),  # the interval includes 0
        (decided(measures=changed(-0.02, -0.03, -0.01)), 'the gap is'),  # within the tolerance
        (decided(measures=changed(0.2, 0.1, 0.3)), 'the gap is'),
        (decided(measures=changed(-0.2, -0.3, -0.1, units=4)), 'the gap is'),  # too few users for an interval
    ],
)
def test_promoted(outcome, why):
    assert outcome['promoted'] and why in ' '.join(outcome['why'])


@pytest.mark.parametrize(
    ('outcome', 'why'),
    [
        (decided(None), 'no held-out user could judge'),
        (decided(users=4), 'only 4 held-out users'),
        (decided(dict(mean=0.1, low=0.0, high=0.2)), 'must lie above 0'),
        (decided(measures=changed(-0.2, -0.3, -0.1)), 'finished fell from 0.50 to 0.30'),
        (decided(measures=changed(0.2, 0.1, 0.3, more_is_better=False)), 'finished rose from 0.50 to 0.70'),
        (decided(length=3.1), '3.10 times as long'),
        (decided(length=0.3), '0.30 times as long'),
        (decided(kl=2.1), '2.10 nats per token'),
        (decided(kl=float('nan')), 'nan nats per token'),
        (decided(kl=None), 'no reply of the new policy'),
        (decided(length=None), 'no request of a held-out user was answered'),
    ],
)
def test_not_promoted(outcome, why):
    assert not outcome['promoted'] and why in ' '.join(outcome['why'])


def test_a_measure_is_over_the_questions_that_both_answered():
    of = measure(dict(a=0.0, b=1.0, c=0.5), dict(a=1.0, b=1.0, d=0.0), dict.fromkeys('abcd', 'u'), more_is_better=True)
    assert (of.before, of.after, of.change['mean']) == (0.5, 1.0, 0.5)
    assert measure(dict(a=0.0), dict(b=1.0), {}, more_is_better=True) is None


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two tiny models, requests of users, and held-out pairs."""
    folder = tmp_path_factory.mktemp('gate')
    for name, seed in (('old', 0), ('new', 1)):
        tiny.write_model(folder / name, seed=seed)
    prompts = [
        dict(
            id=f'{user}/{number}',
            user_id=user,
            persona='I like tea.' if number else '',
            split=split,
            messages=[dict(role='user', content=f'Why {number}?')],
        )
        for user, split in (('a', 'validation'), ('b', 'validation'), ('c', 'train'))
        for number in range(2)
    ]
    write_records(folder / 'prompts.jsonl', prompts)
    (folder / 'pairs').mkdir()
    pairs = [
        record | dict(user_id=f'u{n % 7}') for n, record in enumerate(tiny.preferences(20)) if 'b' not in record['id']
    ]
    write_records(folder / 'pairs' / 'validation.jsonl', [pair for pair in pairs if len(pair['prompt']) == 1])
    write_json(folder / 'pairs' / 'manifest.json', dict(stage='pairs'))
    return folder


def settings(folder, **gates):
    c = base_config()
    c.model.path, c.model.dtype, c.model.logprob_chunk = str(folder / 'old'), 'float32', 64
    c.data.prompts, c.data.pairs = str(folder / 'prompts.jsonl'), str(folder / 'pairs')
    c.gate.model = str(folder / 'new')
    c.sampler.new_tokens, c.sampler.prompt_tokens, c.sampler.slots = 12, 128, 8
    c.sampler.stop = tiny.STOP
    c.rows.tokens, c.rows.scored = 256, 128
    c.gate.update(gates)
    return c


def run(c, output):
    c.data.gate = str(output)
    counts = gate.STAGE.run(c)
    return counts, read_json(output / 'manifest.json', '')['verdict'], load_records(output / 'records.jsonl')


def test_measures_are_those_of_plain_computations(folder, tmp_path):
    c = settings(folder)
    counts, says, records = run(c, tmp_path / 'gate')
    assert counts['kept_requests'] == 4 and counts['dropped_other_split'] == 2
    assert counts['kept_instructions'] == counts['instructions_read'] == len(INSTRUCTIONS)
    old, new = (CandidateScorer(c, path, capacities(c), sees_persona=True) for path in (c.model.path, c.gate.model))

    def lean(score, prompt, persona, better, worse):
        (values,) = score([Candidates('x', prompt, persona, [better, worse])]).values()
        return values[0] - values[1]

    pairs = load_records(folder / 'pairs' / 'validation.jsonl')
    sides = [(p['prompt'], p['persona'], p['chosen'][0]['content'], p['rejected'][0]['content']) for p in pairs]
    rises = [lean(new, *side) > lean(old, *side) for side in sides]
    assert says['gain']['change']['mean'] == pytest.approx(np.mean(rises) - 0.5) and says['gain']['users'] == 7

    def agreement(score):
        claims = [[dict(role='user', content=asked(claim))] for claim in FALSE_CLAIMS]
        return np.mean([1 / (1 + np.exp(-lean(score, claim, '', AGREES, DISAGREES))) for claim in claims])

    agrees = says['measures']['agreement with false claims']
    assert [agrees['before'], agrees['after']] == pytest.approx([agreement(old), agreement(new)], abs=1e-5)

    prompts = {p['id']: p for p in load_records(folder / 'prompts.jsonl')}
    asked_by_users = [record for record in records if record['id'].startswith('request')]
    tokenizer = load_tokenizer(folder / 'new' / 'tokenizer')
    moved = tokens = 0
    for record in asked_by_users:
        reply = record['after'][0]
        prompt = prompts[record['id'].removeprefix('request ')]
        assert record['user_id'] == prompt['user_id'] and record['request'] == prompt['messages'][0]['content']
        if not reply['finished']:
            continue
        item = Candidates('x', prompt['messages'], prompt['persona'], [reply['text']])
        moved += new([item])['x'][0] - old([item])['x'][0]
        tokens += len(tokenizer.encode(reply['text'])) + 1  # and the end of the turn
    assert says['kl'] == pytest.approx(moved / tokens, rel=1e-4) and moved != 0
    lengths = [sum(len(record[side][0]['text'].split()) for record in asked_by_users) for side in ('before', 'after')]
    assert says['length_ratio'] == pytest.approx(lengths[1] / lengths[0], rel=0.5)
    finished = [np.mean([record[side][0]['finished'] for record in asked_by_users]) for side in ('before', 'after')]
    share = says['measures']['the share of finished replies']
    assert [share['before'], share['after']] == pytest.approx(finished)
    followed = [
        np.mean([INSTRUCTIONS[n].followed(reply['text']) for n, record in enumerate(rest) for reply in record[side]])
        for rest in [[record for record in records if record not in asked_by_users]]
        for side in ('before', 'after')
    ]
    share = says['measures']['the share of followed instructions']
    assert [share['before'], share['after']] == pytest.approx(followed)


def test_the_same_policy_is_not_promoted(folder, tmp_path):
    c = settings(folder, model=str(folder / 'old'))
    _, says, _ = run(c, tmp_path / 'gate')
    assert not says['promoted'] and says['gain']['change']['mean'] == 0 and says['kl'] == 0
    assert says['why'] == [
        'the share of held-out pairs with a better preference, minus a half, is 0.000 [0.000, 0.000], and this '
        'interval must lie above 0'
    ]


def test_a_policy_that_prefers_what_users_chose_is_promoted(folder, tmp_path):
    """The pairs are turned so that the new policy leans to every chosen reply."""
    c = settings(folder, max_kl=99.0, max_length_ratio=99.0, tolerance=1.0)
    old, new = (CandidateScorer(c, path, capacities(c), sees_persona=True) for path in (c.model.path, c.gate.model))
    pairs = load_records(folder / 'pairs' / 'validation.jsonl')
    for pair in pairs:
        item = Candidates(
            'x', pair['prompt'], pair['persona'], [pair[side][0]['content'] for side in ('chosen', 'rejected')]
        )
        rise = np.subtract(new([item])['x'], old([item])['x'])
        if rise[0] < rise[1]:
            pair['chosen'], pair['rejected'] = pair['rejected'], pair['chosen']
    (tmp_path / 'pairs').mkdir()
    write_records(tmp_path / 'pairs' / 'validation.jsonl', pairs)
    write_json(tmp_path / 'pairs' / 'manifest.json', dict(stage='pairs'))
    c.data.pairs = str(tmp_path / 'pairs')
    _, says, _ = run(c, tmp_path / 'gate')
    assert says['promoted'] and says['gain']['change'] == dict(mean=0.5, low=0.5, high=0.5)


@pytest.mark.parametrize('better', [True, False])
def test_simulated_users_judge(folder, tmp_path, better):
    """Six users each give both policies two replies' worth of judgement."""
    for side, satisfied in (('before', 0.0), ('after', 1.0 if better else 0.0)):
        (tmp_path / side).mkdir()
        records = [
            dict(
                id=f'{user}/{n}',
                user_id=user,
                condition=condition,
                valid=True,
                satisfaction=value,
                met=dict(length=value),
            )
            for user, n in itertools.product('uvwxyz', range(2))
            for condition, value in (('own', satisfied), ('other', 0.0))
        ]
        write_records(tmp_path / side / 'records.jsonl', records)
    c = settings(folder, max_kl=99.0, max_length_ratio=99.0, tolerance=1.0)
    c.gate.satisfaction = f'{tmp_path / "before"},{tmp_path / "after"}'
    _, says, _ = run(c, tmp_path / 'gate')
    assert says['promoted'] == better and says['gain']['users'] == 6
    satisfied = says['measures']['satisfaction under the own persona']
    assert (satisfied['before'], satisfied['after']) == (0.0, float(better))


@pytest.mark.parametrize(('judges', 'says'), [('none', 'names 1 folders: name two'), ('none,none', 'not a finished')])
def test_judges_that_are_not_there_are_refused_first(folder, tmp_path, judges, says):
    with pytest.raises(UserError, match=f'config.gate.satisfaction.*{says}'):
        run(settings(folder, satisfaction=judges), tmp_path / 'gate')


def test_without_judges_nothing_is_promoted(folder, tmp_path):
    c = settings(folder)
    c.data.pairs = ''
    _, says, _ = run(c, tmp_path / 'gate')
    assert not says['promoted'] and says['gain'] is None and 'no held-out user could judge the policy' in says['why']


def test_a_missing_policy_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r'config\.gate\.model is empty'):
        run(settings(folder, model=''), tmp_path / 'gate')


def test_the_policy_in_force_is_a_link_that_is_replaced(tmp_path):
    """Folders may be moved together, since the link is relative; a link to a link leads to the folder itself."""
    first, second = tmp_path / 'rounds' / 'one', tmp_path / 'rounds' / 'two'
    for path in (first / 'run', second / 'run'):
        path.mkdir(parents=True)
    put_in_force(first, first / 'run')
    put_in_force(second, second / 'run')
    put_in_force(second, first / 'model')
    assert (second / 'model').resolve() == first / 'run' and (second / 'model').readlink() == tiny.Path('../one/run')
    (tmp_path / 'model').mkdir()
    with pytest.raises(UserError, match='is not the link to the policy in force'):
        put_in_force(tmp_path, first / 'run')
    (tmp_path / 'rounds').rename(tmp_path / 'moved')
    assert (tmp_path / 'moved' / 'two' / 'model').resolve() == tmp_path / 'moved' / 'one' / 'run'
