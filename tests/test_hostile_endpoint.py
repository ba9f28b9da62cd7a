"""An endpoint that answers with gigabytes, bombs, absurd counts or the key itself; without a model behind it."""

import base64
import contextlib
import gzip
import http.server
import json
import tracemalloc
import urllib.parse

import pytest
from stub_server import serving

pytest.importorskip('openai')

from data_pipelines.core.stage import Task  # noqa: E402
from data_pipelines.teacher.completions import LONGEST_ANSWER  # noqa: E402
from data_pipelines.teacher.endpoint import draw, identity  # noqa: E402
from rlhi_jax.config import base_config  # noqa: E402
from rlhi_jax.io.errors import UserError  # noqa: E402
from rlhi_jax.sampling.generator import Prompt  # noqa: E402

KEY = 'sk-Secret+key/1234567890=='
GOOD = dict(choices=[dict(message=dict(content='Fine.'), finish_reason='stop')])


def completion(**usage) -> bytes:
    return json.dumps(GOOD | dict(usage=usage)).encode()


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers every request with `answer`: status, headers, and the bytes or a function that writes them."""

    answer = (200, {}, b'')

    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        status, headers, body = type(self).answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client closes the link
            body(self.wfile) if callable(body) else self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with serving(Hostile) as address:
        yield address


def ask(url, tmp_path, **teacher):
    c = base_config()
    c.teacher.update(dict(path=url, model='m', timeout=20.0, retries=0, key_variable='HOSTILE_KEY') | teacher)
    task = Task(c, tmp_path / 'out', identity(c), 'made')
    draw(task, [Prompt('a', (('user', 'Hi'),))])
    return task.journal['reply', 'a', 0]


def gigabyte(wfile):
    wfile.write(b'{"choices": "')
    for _ in range(1024):
        wfile.write(b'x' * 2**20)


def bomb() -> bytes:
    return gzip.compress(b'{"choices": "' + b'x' * 2**29, compresslevel=1)


@pytest.mark.parametrize('kind', ['gigabyte', 'bomb'])
def test_endless_answers_take_little_memory(kind, url, tmp_path):
    headers = {} if kind == 'gigabyte' else {'Content-Encoding': 'gzip'}
    Hostile.answer = (200, headers, gigabyte if kind == 'gigabyte' else bomb())
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f'more than {LONGEST_ANSWER} bytes'):
            ask(url, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * LONGEST_ANSWER


@pytest.mark.parametrize('count', [10**30, 10**10, -1, 1.5, '7'])
def test_absurd_token_counts_are_not_an_answer(count, url, tmp_path):
    Hostile.answer = (200, {}, completion(prompt_tokens=count, completion_tokens=1))
    with pytest.raises(UserError, match='the answer is not a completion'):
        ask(url, tmp_path)
    Hostile.answer = (200, {}, completion(prompt_tokens=10**9, completion_tokens=1))
    assert ask(url, tmp_path)['tokens_in'] == 10**9


@pytest.mark.parametrize('status', [401, 403, 500])
def test_the_key_is_not_printed_in_any_encoding(status, url, tmp_path, monkeypatch):
    monkeypatch.setenv('HOSTILE_KEY', KEY)
    for echo in (
        KEY,
        urllib.parse.quote(KEY, safe=''),
        urllib.parse.quote(KEY, safe='').lower(),
        KEY.encode().hex(),
        base64.b64encode(KEY.encode()).decode(),
        base64.b64encode(b'Bearer ' + KEY.encode()).decode(),
        base64.urlsafe_b64encode(b'x ' + KEY.encode() + b' y').decode(),
        KEY.upper(),
    ):
        Hostile.answer = (status, {}, f'you sent {echo}'.encode())
        with pytest.raises(UserError) as refused:
            ask(url, tmp_path)
        shown = str(refused.value)
        assert 'you sent' in shown and '(the key)' in shown
        assert KEY[3:12].lower() not in shown.lower() and base64.b64encode(KEY[3:12].encode()).decode() not in shown
