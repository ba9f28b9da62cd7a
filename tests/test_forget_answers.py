"""Of a teacher's cache, `forget` removes the answers that were made of a forgotten user's text, and only these."""

import json
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
import tiny
from raw_conversations import config, raw_conversation, write_lines
from stub_server import JsonHandler, serving

pytest.importorskip('openai')

from data_pipelines import follow_ups, forget, ingest, personas, rewrites  # noqa: E402
from data_pipelines.preferences import acceptance  # noqa: E402
from data_pipelines.simulator.users import hashed  # noqa: E402
from data_pipelines.teacher import generation  # noqa: E402
from data_pipelines.teacher.cache import AnswerCache, authors_in  # noqa: E402
from rlhi_jax.config.loop_paths import stage_config  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402

USERS = ('zebra', 'horse', 'mouse', '')  # the last is unknown
ZEBRA, HORSE, MOUSE = map(hashed, USERS[:3])
STAGES = (ingest, follow_ups, personas, rewrites)
NOBODY = 'http://127.0.0.1:9/v1'
SHARED = 'Shorter, please.'


class Echo(JsonHandler):
    """A teacher that labels every turn as feedback, and repeats all that it reads in its other answers."""

    def do_POST(self):
        request = self.request_body()
        said = ' '.join(message['content'] for message in request['messages'])
        if 'Its label is' in said:
            turn = re.findall(r'<data \w+>\n(.*?)\n</data', said, re.DOTALL)[-1]
            text = json.dumps(dict(label='reattempt_with_feedback', confidence=1.0, quote=turn))
        else:
            text = f'I like short answers.\n{said}'
        self.answer(200, dict(choices=[dict(message=dict(content=text), finish_reason='stop')]))


@pytest.fixture(scope='module')
def url():
    with serving(Echo) as address:
        yield address


def conversation(user: str, number: int, remark: str) -> dict:
    """A conversation that names its user in every text but, perhaps, the remark."""
    mark = user or 'whale'
    texts = [f'Tell the {mark} of {number}.', f'Well, {mark}.', remark, f'So, {mark}.']
    at = f'2026-01-0{number + 1}T00:00:00+00:00'
    raw = raw_conversation(f'{mark}{number}', *texts, user=user)
    for part in (raw, *raw['conversation']):
        part.update(dict(timestamp=at) if user else dict(timestamp=at, hashed_ip=''))
    return raw


def settings(folder, path):
    c = config(folder, conversations='')
    c.teacher.update(dict(path=path, model='m', retries=0, concurrency=1, cache=str(folder / 'answers.sqlite')))
    c.model.path, c.ingest.heldout = str(folder / 'model'), 0.0
    c.rewrites.regenerate, c.rewrites.min_gain = False, -9.0
    return c


@pytest.fixture(scope='module', autouse=True)
def patched():
    """Authors of the same remark are in different blocks, and every rewrite passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personas, 'BLOCK', 1)
        patch.setattr(acceptance, 'reason_to_drop', lambda *given, **named: '')
        patch.setattr(
            generation, 'likelihoods', lambda task, asked, path: {each.id: [0.0] * len(each.replies) for each in asked}
        )
        yield


@pytest.fixture(scope='module')
def finished(url, patched, tmp_path_factory):
    """A workdir and a cache. Two users made the same remark, and each made one of their own."""
    folder = tmp_path_factory.mktemp('finished')
    raw = [conversation(user, 0, f'Make it shorter, said the {user or "whale"}.') for user in USERS]
    raw += [conversation(user, 1, SHARED) for user in ('zebra', 'horse')]
    write_lines(folder / 'raw.jsonl', raw)
    tiny.write_model(folder / 'model')
    run_stages(settings(folder, url), folder / 'mine')
    return folder


@pytest.fixture
def c(finished, tmp_path):
    """A config of a copy of all that is finished; its teacher cannot be reached."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return settings(tmp_path, NOBODY)


def run_stages(c, workdir, **how):
    for stage in STAGES:
        stage.STAGE.run(stage_config(c, workdir, stage.STAGE.name), **how)


def outputs(workdir):
    paths = [path for path in workdir.rglob('*.jsonl') if path.is_file()]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in paths}


def answers(c):
    """The answers in the cache, each as it is stored, keyed by request."""
    with closing(sqlite3.connect(c.teacher.cache)) as file:
        return dict(file.execute('SELECT request, text FROM answers'))


def forget_user(c, workdir, *users):
    report = forget.forget(c, frozenset(users), str(workdir))
    return report, '\n'.join(forget.in_words(report))


def test_only_answers_made_of_the_users_text_go(c, tmp_path):
    workdir, cache = tmp_path / 'mine', tmp_path / 'answers.sqlite'
    before = answers(c)
    for mark in ('zebra', 'horse', 'mouse', 'whale'):
        assert sum(mark in text for text in before.values()) >= 2, mark
    assert b'zebra' in cache.read_bytes() and authors_in(str(cache)) == {ZEBRA, HORSE, MOUSE, 'whale0'}
    report, words = forget_user(c, workdir, ZEBRA)
    assert b'zebra' not in cache.read_bytes() and ZEBRA.encode() not in cache.read_bytes()
    assert not list(tmp_path.glob('answers.sqlite-*')) and cache.stat().st_mode & 0o777 == 0o600
    left = {name: text for name, text in before.items() if 'zebra' not in text}
    zebras = [text for text in before.values() if SHARED in text and 'quote' in text and 'zebra' not in text]
    assert len(zebras) == 2  # the labels of the shared remark do not name their users
    assert answers(c).items() <= left.items() and len(left) - len(answers(c)) == 1
    gone = len(before) - len(answers(c))
    assert report.answers == (gone, 0)
    assert f"{cache}: {gone} answers removed from the teacher's cache: {gone} to requests that contained" in words
    # All that the others need is still there: a new workdir is filled without any request.
    (tmp_path / 'new.opt_out').write_bytes((tmp_path / 'mine.opt_out').read_bytes())
    run_stages(c, tmp_path / 'new')
    assert outputs(tmp_path / 'new') == outputs(workdir)
    assert (
        b'I like short answers.' in outputs(workdir)['personas/claims.jsonl']
        and outputs(workdir)['rewrites/records.jsonl']
    )
    assert forget_user(c, workdir, HORSE)[0].answers.theirs >= 4
    assert b'horse' not in cache.read_bytes() and SHARED.encode() not in cache.read_bytes()


def test_a_user_of_whom_only_answers_are_left(c, tmp_path):
    """Their conversations are no longer in the workdir. For a mistyped id, nothing is removed."""
    (tmp_path / 'empty').mkdir()
    before = answers(c)
    report, words = forget_user(c, tmp_path / 'empty', 'mistyped')
    assert answers(c) == before and report.answers == (0, 0) and 'nothing was removed' in words
    report, words = forget_user(c, tmp_path / 'empty', ZEBRA)
    assert report.answers.theirs and not report.unknown and 'nothing was removed' not in words
    assert b'zebra' not in (tmp_path / 'answers.sqlite').read_bytes()


def test_answers_of_an_older_version_go_too(c, tmp_path):
    """They answer requests as before. Only the answers that were used since then are known to be somebody else's."""
    before = answers(c)
    with closing(sqlite3.connect(c.teacher.cache)) as file:
        file.execute('DROP TABLE authors')
    for stage in STAGES[:2]:
        stage.STAGE.run(stage_config(c, tmp_path / 'other', stage.STAGE.name))
    report, words = forget_user(c, tmp_path / 'other', ZEBRA)
    labels = {name: text for name, text in before.items() if 'reattempt_with_feedback' in text}
    assert answers(c).items() <= labels.items() and len(labels) - len(answers(c)) == 2 == report.answers.theirs
    assert report.answers.unknown == len(before) - len(labels)
    assert f'and {report.answers.unknown} to requests whose authors are unknown' in words
    assert b'zebra' not in (tmp_path / 'answers.sqlite').read_bytes()


def test_a_record_of_answers_is_named_but_not_changed(c, tmp_path):
    workdir = tmp_path / 'mine'
    record = tmp_path / 'answers.jsonl'
    lines = [dict(request=name, text=text, finished=True) for name, text in answers(c).items()]
    write_lines(record, lines)
    before, cached = record.read_bytes(), (tmp_path / 'answers.sqlite').read_bytes()
    c.teacher.cache = str(record)
    run_stages(c, tmp_path / 'replayed')
    report, words = forget_user(c, workdir, ZEBRA)
    assert record.read_bytes() == before and (tmp_path / 'answers.sqlite').read_bytes() == cached
    assert f"{record}: this file of a teacher's recorded answers was not changed" in words and report.answers == (0, 0)


@pytest.mark.parametrize('when', ['before', 'after'])
def test_an_interrupted_call_is_resumed(c, tmp_path, monkeypatch, when):
    workdir = tmp_path / 'mine'
    before = answers(c)

    def killed(*given, forget_answers=forget.forget_answers):
        if when == 'after':
            forget_answers(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forget, 'forget_answers', killed)
        with pytest.raises(KeyboardInterrupt):
            forget_user(c, workdir, ZEBRA)
    forget_user(c, workdir, MOUSE)
    assert not [text for text in answers(c).values() if 'zebra' in text or 'mouse' in text]
    assert {name: text for name, text in before.items() if 'horse' in text}.items() <= answers(c).items()
    assert not [name for name, data in outputs(workdir).items() if b'zebra' in data or b'mouse' in data]


def test_no_cache_is_made_and_what_is_no_cache_stops_the_call(c, tmp_path):
    workdir, cache = tmp_path / 'mine', tmp_path / 'answers.sqlite'
    cache.unlink()
    (tmp_path / 'answers.sqlite-journal').write_text('zebra')
    forget_user(c, workdir, ZEBRA)
    assert not list(tmp_path.glob('answers.sqlite*'))
    before = outputs(workdir)
    cache.write_text('horse' * 999)
    with pytest.raises(UserError, match='config.teacher.cache: cannot use .* as a cache'):
        forget_user(c, workdir, HORSE)
    assert outputs(workdir) == before and (tmp_path / 'mine.opt_out').read_text() == f'{ZEBRA}\n'


def test_an_author_who_was_unknown_when_the_teacher_was_asked(c, tmp_path):
    """Their answers are stored under the ids of their conversations."""
    with closing(AnswerCache(c.teacher.cache)) as cache:
        cache.put('once unknown', 'by the zebra, then unknown', True, ['zebra0'])
    forget_user(c, tmp_path / 'mine', ZEBRA)
    assert b'zebra' not in (tmp_path / 'answers.sqlite').read_bytes()
