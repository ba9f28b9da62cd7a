"""`python -m rlhi_jax.check` names the faults of data, teachers and machines, each with its remedy."""

import dataclasses
import json
import random
import re
import shutil
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import tiny
from stub_server import JsonHandler, serving

pytest.importorskip('openai')

from data_pipelines.checks import teacher  # noqa: E402
from data_pipelines.checks.teacher import FOLLOW_UPS  # noqa: E402
from rlhi_jax.check import check  # noqa: E402
from rlhi_jax.config import base_config  # noqa: E402
from rlhi_jax.cost.memory import num_parameters  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402
from rlhi_jax.loop import run_loop  # noqa: E402
from rlhi_jax.models.decoder import Decoder  # noqa: E402
from rlhi_jax.models.parameters import init_params  # noqa: E402

WISHES = {
    'short': 'I like short answers.',
    'bullet': 'I like bullet points.',
    'simple': 'I like simple words.',
    'example': 'I like answers with an example.',
    'steps': 'I like numbered steps.',
    'casual': 'I like a casual tone.',
}


class Teacher(JsonHandler):
    """Knows the right answers, but has the manners that `manner` names."""

    manner, asked = 'good', 0
    prompts: ClassVar[list[str]] = []
    at_once: ClassVar[list[int]] = [0]  # how many requests were being answered, each time that one began or ended

    def do_POST(self):
        cls = type(self)
        request = self.request_body()
        text = request['messages'][-1]['content']
        cls.asked += 1
        cls.prompts += (message['content'] for message in request['messages'])
        cls.at_once.append(cls.at_once[-1] + 1)
        if cls.manner == 'slow':
            time.sleep(0.8)
        if cls.manner == 'a little slow':
            time.sleep(0.1)
        cls.at_once.append(cls.at_once[-1] - 1)
        if cls.manner == 'wrong key':
            self.answer(401, dict(error=dict(message='Incorrect API key provided')))
        elif cls.manner == 'small context' and sum(len(m['content']) for m in request['messages']) > 4000:
            self.answer(400, dict(error=dict(message='maximum context length is 1024 tokens')))
        else:
            answer = dict(message=dict(content=self.reply(text)), finish_reason='stop')
            self.answer(200, dict(choices=[answer], usage=dict(prompt_tokens=400, completion_tokens=20)))

    def reply(self, text: str) -> str:
        if '<data ' not in text:
            return 'Here you are.'
        if 'Its label is' not in text:
            remark = re.findall(r'<data \w+>\n(.*?)\n</data', text, re.DOTALL)[-1]
            return next((wish for word, wish in WISHES.items() if word in remark), 'I like music.')
        turn = re.findall(r'<data \w+>\n(.*?)\n</data', text, re.DOTALL)[-1]
        label = 'other' if type(self).manner == 'other' else FOLLOW_UPS.get(turn, 'other')
        return json.dumps(dict(label=label, confidence=1.0, quote=turn[:200]))


@pytest.fixture(scope='module')
def url():
    with serving(Teacher) as address:
        yield address


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp('check') / 'model', spec=tiny.LOOP_SPEC)


def opening(name: str) -> str:
    """A first message that resembles no other."""
    return ' '.join(random.Random(name).choices(tiny.WORDS, k=12))


def conversations(users: int = 30, each: int = 3, **changed) -> list[dict]:
    """Conversations of several users, all of whose fields the default config finds."""
    records = []
    for user in range(users):
        for number in range(each):
            texts = [
                opening(f'{user}-{number}'),
                f'Mix flour and water, {user}-{number}.',
                'Shorter, please.',
                'Mix and bake.',
            ]
            messages = [
                dict(role=('user', 'assistant')[i % 2], content=text, timestamp=f'2024-0{number + 1}-01T10:0{i}:00Z')
                for i, text in enumerate(texts)
            ]
            records.append(dict(conversation_id=f'c{user}-{number}', user_id=f'u{user}', messages=messages) | changed)
    return records


def without_times(records):
    for record in records:
        for message in record['messages']:
            message.pop('timestamp')
    return records


@pytest.fixture
def found(url, model, tmp_path):
    """Runs the check on records; returns its findings, the seconds that it took and the number of questions asked."""

    def run(records, manner='good', **settings):
        path = tmp_path / 'raw.jsonl'
        path.write_text(''.join(json.dumps(record) + '\n' for record in records))
        c = base_config()
        c.model.path, c.data.raw = str(model), str(path)
        c.teacher.path, c.teacher.model, c.rows.tokens = url, 'm', 512
        c.sampler.prompt_tokens, c.sampler.new_tokens = 256, 128
        for name, value in settings.items():
            *sections, key = name.split('__')
            section = c
            for part in sections:
                section = section[part]
            section[key] = value
        Teacher.manner, Teacher.asked = manner, 0
        start = time.monotonic()
        findings = check(c, tmp_path / 'run')
        assert not (tmp_path / 'run').exists() and sorted(p.name for p in tmp_path.iterdir()) == ['raw.jsonl']
        return findings, time.monotonic() - start, Teacher.asked

    return run


def test_what_is_in_order_has_no_problems(found):
    findings, seconds, asked = found(conversations())
    assert not findings.problems and asked == 19 and seconds < 10
    text = '\n'.join(findings.facts)
    assert 'Data: 90 records read (all records) in 1 files.' in text
    assert 'user: user_id (100%)' in text and 'said_at: timestamp (100%)' in text
    assert 'Users: 30, of whom 30 have several conversations; 90 conversations, 180 exchanges, 90 follow-ups' in text
    assert '12 of 12 labels right, 4 of 4 complaints noticed' in text and '6 of 6 wishes stated' in text
    assert 'Held out for the evaluation: 2 of 30 users, in 2 of 30 clusters' in text
    assert 'asked about 90 follow-ups, assuming that 25% of them are feedback' in text
    for kind, requests in (('labels', '90'), ('sentences for personas', '90'), ('rewrites', '90'), ('in all', '270')):
        assert f'  {kind}: about {requests} requests' in text  # a quarter of the follow-ups, four samples each


FAULTY_DATA = {
    'no times': (without_times(conversations()), 'stop', "'first_k_turns'", 'a start time'),
    'no users': (
        [{**record, 'user_id': None} for record in conversations()],
        'stop', 'a user id', "'first_k_turns'",
    ),
    'one user': (conversations(users=1, each=9), 'warn', 'one user', 'ten users'),
    'one cluster': (
        [{**record, 'messages': [{**record['messages'][0], 'content': 'Bake.'}, *record['messages'][1:]]}
         for record in conversations()],
        'warn', '30 of 30 users, and all of them go to the same split', 'config.ingest.similarity',
    ),
    'few users': (conversations(users=5), 'warn', 'fewer than 2 users are held out', 'config.ingest.heldout=0.5'),
    'ids taken for messages': (
        [dict(conversation='c-17', turns=record['messages']) for record in conversations()],
        'stop', "'c-17'", 'config.ingest.fields.messages',
    ),
    'other names': (
        [dict(thread='t', account=dict(ref='a'), turns=[dict(who='customer', body='Hi.')])] * 20,
        'stop', "'no messages'", 'thread, account{ref}, turns[who, body]',
    ),
    'users in objects': (
        [{**record, 'user_id': dict(ref=record['user_id'])} for record in conversations()],
        'warn', 'config.ingest.fields.user', 'never to a user id',
    ),
    'ids of users': (
        [record | dict(conversation_id=record['user_id']) for record in conversations()],
        'warn', '30 different ids', 'config.ingest.fields.id',
    ),
    'mixed roles': (
        [
            json.loads(json.dumps(record).replace('"assistant"', '"helper"'))
            for record in conversations()
        ],
        'stop', 'unknown roles (helper)', 'config.ingest.fields.user_role',
    ),
    'single turns': (
        [record | dict(messages=record['messages'][:2]) for record in conversations()], 'stop', 'contain no feedback',
    ),
    'one conversation each': (conversations(each=1), 'stop', 'two conversations with times', "'first_k_turns'"),
}  # fmt: skip


@pytest.mark.parametrize('case', FAULTY_DATA)
def test_faulty_data(case, found):
    records, kind, *words = FAULTY_DATA[case]
    findings, seconds, asked = found(records)
    texts = [problem.text for problem in findings.problems if problem.stops == (kind == 'stop')]
    assert [text for text in texts if all(word in text for word in words)], findings.problems
    assert seconds < 10 and (asked == 0 or kind == 'warn')


FAULTY_TEACHERS = {
    'other': (True, 'notices 0 of 4 obvious complaints', "labeller='policy'"),
    'wrong key': (True, 'status 401', 'environment variable OPENAI_API_KEY'),
    'slow': (False, 'short questions', 'use a faster server'),
    'small context': (False, 'longest follow-up in the sample', 'longer context'),
}


@pytest.mark.parametrize('manner', FAULTY_TEACHERS)
def test_faulty_teachers(manner, found):
    stops, *words = FAULTY_TEACHERS[manner]
    records = conversations()
    records[0]['messages'][1]['content'] = 'Knead it well. ' * 400
    findings, seconds, _ = found(records, manner, teacher__concurrency=1 if manner == 'slow' else 16)
    assert [p for p in findings.problems if p.stops == stops and all(word in p.text for word in words)], (
        findings.problems
    )
    assert seconds < 10 or manner == 'slow'


def test_a_teacher_that_is_not_asked_for_labels_need_not_know_them(found):
    findings, *_ = found(conversations(), 'other', follow_ups__labeller='policy')
    assert not findings.stops


def test_nothing_of_a_user_who_opted_out_is_shown_or_sent(found, tmp_path_factory):
    records = conversations()
    for record in records[:3]:  # those of u0, whose messages are the longest
        record['messages'][0]['content'] += ' Zanzibar.' * 400
    Teacher.prompts.clear()
    findings, *_ = found(records)
    assert 'Zanzibar' in str(Teacher.prompts) and any('Users: 30' in fact for fact in findings.facts)
    Teacher.prompts.clear()
    opt_out = tmp_path_factory.mktemp('opt_out') / 'list'
    opt_out.write_text('u0\n')
    findings, *_, asked = found(records, ingest__opt_out=str(opt_out))
    assert asked and 'Zanzibar' not in str(Teacher.prompts) + str(findings.facts + findings.problems)
    assert any('Users: 29' in fact for fact in findings.facts) and '  dropped, opted out: 3 (3%)' in findings.facts


def test_personal_details_are_not_sent(found):
    records = conversations()
    records[0]['messages'][0]['content'] += ' Write to ann@example.org.' * 40
    Teacher.prompts.clear()
    found(records)
    assert '[email]' in str(Teacher.prompts) and 'ann@example' not in str(Teacher.prompts)


def test_a_slow_teacher_is_asked_one_question_at_a_time(found, monkeypatch):
    """Its server may answer requests one after another, also those that nobody waits for any longer."""
    for seconds, expected in ((60.0, False), (0.05, True)):
        monkeypatch.setattr(teacher, 'SERIAL', seconds)
        Teacher.at_once[:] = [0]
        findings, *_ = found(conversations(), 'a little slow')
        assert not findings.stops and (max(Teacher.at_once) == 1) == expected


def test_a_dead_teacher(found):
    findings, seconds, _ = found(conversations(), teacher__path='http://127.0.0.1:9/v1')
    assert ['check that the server is running' in problem.text for problem in findings.stops] == [True]
    assert seconds < 10


def test_a_small_model_as_its_own_teacher(found, model):
    findings, _, asked = found(conversations(), teacher__path='', teacher__model='')
    assert 'million parameters' in findings.problems[0].text and 'config.teacher.path' in findings.problems[0].text
    assert not findings.stops and asked == 0


def test_a_teacher_with_recorded_answers_is_not_asked(found):
    findings, _, asked = found(conversations(), teacher__cache='answers.jsonl')
    assert not findings.problems and asked == 0 and 'answers.jsonl are replayed' in findings.facts[-1]


def test_too_small_a_context_of_the_policy(found):
    findings, _, _ = found(conversations(), rows__tokens=2**20, sampler__new_tokens=2**20)
    assert [problem.text for problem in findings.problems if 'has a context of' in problem.text]


def test_too_little_disk_or_memory(found, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr('data_pipelines.checks.machine._memory', lambda: 1000)
    findings, _, asked = found(conversations())
    assert 'free some space' in findings.stops[0].text and asked == 0
    assert [problem.text for problem in findings.problems if 'train only adapters' in problem.text]


def test_the_program_says_whether_to_go_on(url, model, tmp_path):
    (tmp_path / 'raw.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in conversations()))
    flags = [f'--config={tiny.CONFIG}', f'--config.model.path={model}', f'--config.data.raw={tmp_path / "raw.jsonl"}']
    flags += [f'--config.teacher.path={url}', '--config.teacher.model=m']
    Teacher.manner = 'good'
    done = tiny.run_program('rlhi_jax.check', *flags)
    assert done.stdout.endswith('Nothing would stop the loop.\n')
    bad = tiny.run_program('rlhi_jax.check', *flags, '--config.ingest.fields.messages=turns', check=False)
    assert bad.returncode == 1 and 'STOPS: ' in bad.stdout and 'Traceback' not in bad.stderr


@pytest.mark.parametrize('head', ['lm', 'reward'])
@pytest.mark.parametrize('changes', [{}, dict(qkv_bias=True), dict(qk_norm=True), dict(tied_embeddings=True)])
def test_parameters_are_counted(head, changes):
    import jax

    spec = dataclasses.replace(tiny.SPEC, head=head, **changes)
    shapes = jax.eval_shape(lambda: init_params(Decoder(spec), jax.random.key(0)))
    assert num_parameters(spec) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def loop_config(model, url, path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    c = base_config()
    c.model.path, c.data.raw, c.compilation_cache = str(model), str(path), ''
    c.teacher.path, c.teacher.model = url, 'm'
    return c


def test_the_loop_begins_with_a_check(url, model, tmp_path, capfd):
    c = loop_config(model, url, tmp_path / 'raw.jsonl', conversations(each=1))
    Teacher.asked = 0
    with pytest.raises(UserError, match=r'run `python -m rlhi_jax.check` to see the details'):
        run_loop(c, tmp_path / 'run')
    assert not (tmp_path / 'run').exists() and Teacher.asked == 0
    assert 'error: no user has two conversations with times' in capfd.readouterr().err


def test_a_loop_whose_teacher_finds_no_feedback_stops_with_a_report(url, model, tmp_path):
    c = loop_config(model, url, tmp_path / 'raw.jsonl', conversations())
    Teacher.manner = 'other'
    with pytest.raises(UserError, match=r'none of 90 follow-ups is labelled .*labels: other 90.*test the teacher'):
        run_loop(c, tmp_path / 'run')
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['unfinished']['part'] == 'follow_ups' and report['unfinished']['number'] == 2
    assert 'test the teacher' in report['unfinished']['why'] and report['summary'] == '0 complaints'
    assert (tmp_path / 'run' / 'follow_ups' / 'manifest.json').exists()
    assert 'follow ups' in (tmp_path / 'run' / 'card' / 'card.md').read_text()
