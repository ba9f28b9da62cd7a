"""Examples of labels, pairs and dropped remarks: the counts are right, and the same examples are drawn each time."""

import random
from collections import Counter

import pytest
import tiny
from test_persona_store import CONVERSATIONS, DAYS, conversation, files, write_inputs

from data_pipelines import persona_store, personas, show
from data_pipelines.core.record_files import load_records, write_records
from data_pipelines.labelling.labels import AGAIN, FEEDBACK, LABELS
from data_pipelines.persona.audit import LEVELS
from data_pipelines.persona.dropped import NOT_STORED, REASONS
from data_pipelines.reports.excerpts import WIDTH, drawn, excerpt
from data_pipelines.teacher import completions
from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, write_json

DROPPED = {
    'How do I drop a row?': 'of_the_task',
    'Please, I am a diabetic: no sugar in your recipes.': 'health',
    'Please mention insects, bees, honey.': 'unsupported',
}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp('model'), spec=tiny.LOOP_SPEC)


def test_the_drawn_examples_do_not_depend_on_the_order():
    records = [dict(id=f'c{n}/2', kind='ab'[n % 3 == 0]) for n in range(50)]
    counts, examples = drawn(records, lambda record: record['kind'], 4)
    assert counts == Counter(record['kind'] for record in records)
    for kind, kept in examples.items():
        ids = [record['id'] for record in records if record['kind'] == kind]
        assert [record['id'] for record in kept] == sorted(ids, key=digest)[:4]
    random.Random(0).shuffle(records)
    assert drawn(records, lambda record: record['kind'], 4) == (counts, examples)


@pytest.mark.parametrize('text', ['word ' * 1000, 'a' * 5000, '蜂' * 300, 'one\n\ntwo', '', '\x1b[2J\x07\u202e'])
def test_excerpts_are_readable(text):
    lines = excerpt('request', text).split('\n')
    assert lines[0].startswith('    request ') and len(lines) <= 3
    assert all(len(line) <= WIDTH and line.isprintable() for line in lines)
    assert lines[-1].endswith(' …') == (len(text) > 3 * WIDTH - 60)


def turn(n: int, label: str, mined: bool) -> dict:
    texts = dict(
        request=f'Question {n}?', reply=f'Answer {n}. ' * 90, follow_up=f'Shorter,\nuser {n}!', quote='Shorter'
    )
    return dict(id=f'c{n}/2', label=label, confidence=0.5 + n / 1000, mined=mined, **texts)


def written(tmp_path, name: str, stage: str, **records):
    """A config whose folder `name` contains these records."""
    (tmp_path / name).mkdir(parents=True)
    write_json(tmp_path / name / 'manifest.json', dict(stage=stage, made_from={}, counts={}))
    for file, lines in records.items():
        write_records(tmp_path / name / f'{file}.jsonl', lines)


def test_labels(tmp_path):
    turns = [turn(n, FEEDBACK if n % 4 else AGAIN, n % 3 == 0) for n in range(40)]
    written(tmp_path, 'follow_ups', 'follow_ups', records=turns)
    c = base_config()
    c.data.follow_ups = str(tmp_path / 'follow_ups')
    lines = show.follow_ups(c, 3).splitlines()
    table = {line.split()[0]: line.split()[1] for line in lines[: len(LABELS)]}
    assert table == dict.fromkeys(LABELS, '0') | {FEEDBACK: '30', AGAIN: '10'}
    assert f'{FEEDBACK}: 3 of 30 turns' in lines and f'{AGAIN}: 3 of 10 turns' in lines
    first = min(turns[::4], key=lambda each: digest(each['id']))
    start = lines.index(f'{AGAIN}: 3 of 10 turns') + 1
    mined = 'mined' if first['mined'] else 'not mined'
    assert lines[start] == f'  {first["id"]} (confidence {first["confidence"]:.2f}, {mined})'
    assert lines[start + 1] == f'    request     {first["request"]}'
    assert ' '.join(first['follow_up'].split()) in lines[start + 5] and lines[start + 6] == '    quote       Shorter'
    assert show.follow_ups(c, 0).splitlines() == lines[: len(LABELS) + 1]

    flags = [f'--config={tiny.CONFIG}', f'--workdir={tmp_path}', '--samples=3']
    printed = tiny.run_program('data_pipelines.show', 'follow_ups', *flags, f'--label={AGAIN}').stdout
    assert printed.splitlines()[3:] == lines[start - 1 : start + 21] and FEEDBACK not in printed
    for command, flag, problem in (
        ('follow_ups', '--label=praise', '--label=praise is not a label: choose one of reattempt_with_feedback'),
        ('pairs', f'--label={AGAIN}', 'applies only to `follow_ups`'),
        ('pairs', '--samples=-1', '--samples'),
        ('dropped', '--samples=1', "not a finished folder of the 'personas' stage"),
    ):
        refused = tiny.run_program('data_pipelines.show', command, *flags, flag, check=False)
        assert refused.returncode == 2 and problem in refused.stderr and 'Traceback' not in refused.stderr


def test_pairs(tmp_path):
    def pair(n: int, kind: str, split: str) -> dict:
        sides = {side: [dict(role='assistant', content=f'{side} {n}')] for side in ('chosen', 'rejected')}
        prompt = [dict(role='user', content=text) for text in ('Before.', f'Request {n}?')]
        return dict(id=f'c{n}/2 {kind}', split=split, persona='I like lists.' * (n % 2), prompt=prompt, **sides)

    kinds = ('rewrite', 'best/worst')
    train = [pair(n, kinds[n % 5 == 0], 'train') for n in range(20)]
    validation = [pair(n, kinds[0], 'validation') for n in range(20, 26)]
    written(tmp_path, 'dpo/pairs', 'pairs', train=train, validation=validation)
    printed = tiny.run_program(
        'data_pipelines.show', 'pairs', f'--config={tiny.CONFIG}', f'--workdir={tmp_path}'
    ).stdout
    c = base_config()
    c.data.pairs = str(tmp_path / 'dpo/pairs')
    assert printed.rstrip('\n') == show.pairs(c, 5)
    assert 'rewrite: 5 of 22 pairs' in printed and 'best/worst: 4 of 4 pairs' in printed
    for each in train[::5]:
        n = each['id'][1:].split('/')[0]
        shown = '\n'.join(
            (
                f'  c{n}/2 best/worst (train)',
                f'    persona     {each["persona"] or "(empty)"}',
                f'    request     Request {n}?',
                f'    chosen      chosen {n}',
                f'    rejected    rejected {n}',
            )
        )
        assert shown in printed


def with_dropped(tmp_path, model):
    of_u = conversation('g', 'u', DAYS[5], DAYS[5], list(DROPPED))
    return write_inputs(tmp_path, model, [*CONVERSATIONS, of_u])


def test_dropped_remarks_are_those_that_the_stage_counts(tmp_path, model):
    counts = personas.STAGE.run(c := with_dropped(tmp_path, model))
    persona_store.correct(c, dict(delete_claim='d/2'))
    before = files(tmp_path)
    lines = show.dropped(c, 5).splitlines()
    table = {line.split()[0]: int(line.split()[1]) for line in lines[: len(REASONS)]}
    assert +Counter(table) == {reason: counts[f'dropped_{reason}'] for reason in DROPPED.values()}
    for n, (remark, reason) in enumerate(DROPPED.items(), start=1):
        start = lines.index(f'{reason}: 1 of 1 remarks')
        assert lines[start + 1 : start + 3] == [f'  g/{2 * n} ({DAYS[5]})', f'    remark      {remark}']
    assert [line for line in lines if 'sentence ' in line and line.startswith('    ')] == [
        '    sentence    Please mention insects, bees, honey. (unsupported)'
    ]
    assert files(tmp_path) == before
    persona_store.correct(c, dict(delete_user='u'))
    assert show.dropped(c, 5).splitlines()[-1].split() == ['all', 'remarks', '0']
    c.personas.max_claims = 3
    with pytest.raises(UserError, match="different input or settings.*rerun the 'personas' stage"):
        show.dropped(c, 5)


@pytest.mark.parametrize('level', LEVELS)
def test_the_store_its_audit_and_the_dropped_remarks_follow_the_same_level(tmp_path, model, level):
    c = with_dropped(tmp_path, model)
    default = personas.STAGE.made_from(c)
    c.personas.audit = level
    assert (personas.STAGE.made_from(c) == default) == (level == 'strict')
    counts = personas.STAGE.run(c)
    about_replies, follows, lasting = LEVELS[level]
    rules = dict(health=1, of_the_task=about_replies, unsupported=follows and not lasting, does_not_last=3 * lasting)
    expected = +Counter(rules)  # what does not last: the question, and two remarks about honey
    table = {line.split()[0]: int(line.split()[1]) for line in show.dropped(c, 5).splitlines()[: len(REASONS)]}
    assert +Counter(table) == expected == {reason: n for reason in REASONS if (n := counts.get(f'dropped_{reason}'))}
    figures, broken = persona_store.audit(c)
    assert not broken and figures['claims'] == counts['claims'] == 5 + len(DROPPED) - expected.total()
    persona_store.correct(c, dict(delete_claim='a/2'))
    assert not persona_store.audit(c)[1]
    c.personas.audit = 'strict'
    more = max(0, len(DROPPED) - expected.total())
    assert len(persona_store.audit(c)[1]) == more, 'claims that only the other level keeps'


def test_sentences_of_a_teacher_are_shown_from_the_cache(tmp_path, model, monkeypatch):
    """Without the cache, they are unknown. Only the first line of an answer is a sentence."""
    pytest.importorskip('openai')
    answers = iter(f'I am a diabetic who likes tea {n}.\nMore.' for n in range(100))

    async def complete(*_, **__):
        return completions.Completion(next(answers), True, 1, 1)

    monkeypatch.setattr(completions.Endpoint, 'complete', complete)
    c = with_dropped(tmp_path, model)
    c.personas.writer, c.personas.samples = 'teacher', 2
    c.teacher.path, c.teacher.model, c.teacher.cache = 'http://nowhere/v1', 'm', str(tmp_path / 'cache')
    counts = personas.STAGE.run(c)
    shown = show.dropped(c, 9)
    assert counts['dropped_health'] == 7 and 'health: 7 of 7 remarks' in shown  # one remark, and six by a sentence
    assert shown.count('(health)') == 12 and 'More.' not in shown
    assert sum(f'I am a diabetic who likes tea {n}. (health)' in shown for n in range(12)) == 12
    (tmp_path / 'cache').unlink()
    shown = show.dropped(c, 9)
    assert 'health: 1 of 1 remarks' in shown and f'{NOT_STORED}: 6 of 6 remarks' in shown and 'likes tea' not in shown
    assert not (tmp_path / 'cache').exists()
    assert not load_records(tmp_path / 'personas' / 'claims.jsonl')
