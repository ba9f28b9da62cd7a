"""Recorded answers need no teacher; a request that the record lacks is an error that says what to do."""

import json

import pytest

from data_pipelines.core.stage import Task
from data_pipelines.teacher.cache import AnswerCache
from data_pipelines.teacher.endpoint import cached_replies
from data_pipelines.teacher.generation import generate, model_identity
from data_pipelines.teacher.recorded import RecordedAnswers
from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.sampling.generator import Prompt

NOBODY = 'http://127.0.0.1:9/v1'
PROMPTS = [Prompt('one', (('user', 'Name a tree.'),), samples=2), Prompt('two', (('user', 'Name a fruit.'),))]


@pytest.fixture
def config(tmp_path):
    c = base_config()
    c.teacher.path, c.teacher.model, c.teacher.retries = NOBODY, 'm', 0
    c.teacher.cache = str(tmp_path / 'answers.jsonl')
    return c


def ask(c, folder) -> list[str]:
    task = Task(c, folder, model_identity(c, c.teacher.path), 'made')
    return [reply.text for replies in generate(task, c.teacher.path, PROMPTS).values() for reply in replies]


@pytest.fixture
def record(config, tmp_path, monkeypatch):
    """The record of a teacher that answers with the number of the request."""
    asked = []

    def get(self, name):
        asked.append(name)
        return f'Answer {len(asked)}.', True

    with monkeypatch.context() as patch:
        patch.setattr(AnswerCache, 'get', get)
        sampled = config.copy_and_resolve_references()
        sampled.teacher.cache = ''
        ask(sampled, tmp_path / 'first')
    lines = [dict(request=name, text=f'Answer {n}.', finished=True) for n, name in enumerate(asked, start=1)]
    path = tmp_path / 'answers.jsonl'
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n')
    return path


def test_no_teacher_is_asked(config, record, tmp_path):
    before = record.read_bytes()
    assert sorted(ask(config, tmp_path / 'again')) == ['Answer 1.', 'Answer 2.', 'Answer 3.']
    assert record.read_bytes() == before


def test_recorded_replies_are_found_without_asking(config, record):
    """Those that the record lacks are left out, since nobody is asked for them."""
    other = Prompt('other', (('user', 'Name a bird.'),))
    found = cached_replies(config, [*PROMPTS, other])
    assert sorted(reply.text for replies in found.values() for reply in replies) == [f'Answer {n}.' for n in (1, 2, 3)]
    assert found['other'] == []


@pytest.mark.parametrize('change', [('seed', 1), ('teacher.model', 'other'), ('sampler.temperature', 0.5)])
def test_a_request_that_is_not_recorded_is_refused(config, record, tmp_path, change):
    config.update_from_flattened_dict(dict([change]))
    with pytest.raises(UserError, match='do not cover this config and data: set the key to a path'):
        ask(config, tmp_path / 'again')


@pytest.mark.parametrize('line', ['{', '[]', '{"request": "a"}', '7'])
def test_a_damaged_record_is_refused(record, line):
    good = record.read_text().splitlines()[0]
    record.write_text(f'{good}\n{line}\n')
    with pytest.raises(UserError, match='answers.jsonl, line 2 is not a recorded answer'):
        RecordedAnswers(str(record))


def test_a_missing_record_is_refused(config, tmp_path):
    with pytest.raises(UserError, match='config.teacher.cache: cannot read .*answers.jsonl'):
        ask(config, tmp_path / 'again')
