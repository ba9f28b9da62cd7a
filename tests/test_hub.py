"""Repositories of the hub: huggingface_hub against a local server that answers like the hub."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha1
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from raw_conversations import config, output, raw_conversation, records, write_lines

from data_pipelines import ingest
from rlhi_jax.convert import export_model
from rlhi_jax.io.files import read_json

OLD, NEW = 'a' * 40, 'b' * 40
WILD = '/datasets/own/wild'


class Hub:
    """The routes of the hub that a download needs.

    Attributes:
      repos: repository → commit → path → file; the last commit is the branch main.
      gated: repositories that nobody may read.
      held: paths of files that are sent only by half, while they are in this set.
      sent: the path of a file, each time that it was sent completely.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated, self.held, self.sent = set(), set(), []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub._answer(self)

            do_GET = do_HEAD

            def log_message(self, *args):
                pass

        self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._http.server_port}'
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler) -> None:
        path = handler.path.partition('?')[0]
        asks_api, path = path.startswith('/api/'), path.removeprefix('/api').removeprefix('/models')
        repo = next((name for name in self.repos if path.startswith(name + '/')), None)
        if repo is None:
            return self._send(handler, 401, headers={'X-Error-Code': 'RepoNotFound'})
        verb, revision, file = [*path.removeprefix(repo + '/').split('/', 2), ''][:3]
        commits = self.repos[repo]
        commit = list(commits)[-1] if revision == 'main' else revision
        if commit not in commits:
            return self._send(handler, 404, headers={'X-Error-Code': 'RevisionNotFound'})
        files = commits[commit]
        if asks_api and verb == 'revision':
            return self._send(handler, 200, json.dumps(dict(id=repo, sha=commit, siblings=[])).encode())
        if asks_api:
            tree = [dict(type='file', path=at, size=len(files[at]), oid=sha1(files[at]).hexdigest()) for at in files]
            return self._send(handler, 200, json.dumps(tree).encode())
        if repo in self.gated:
            return self._send(handler, 401, headers={'X-Error-Code': 'GatedRepo'})
        headers = {'ETag': f'"{sha1(files[file]).hexdigest()}"', 'X-Repo-Commit': commit}
        return self._send(handler, 200, files[file], headers, held=file in self.held, file=file)

    def _send(self, handler, status, body=b'', headers=None, *, held=False, file='') -> None:
        handler.send_response(status)
        for name, value in {**(headers or {}), 'Content-Length': str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == 'HEAD':
            return
        handler.wfile.write(body[: len(body) // 2] if held else body)
        while held and file in self.held:
            time.sleep(0.01)
        if file and not held:
            self.sent.append(file)


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.held.clear()
    hub.close()


def parquet(folder: Path, conversations: list[dict]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(conversations), folder / 'x.parquet')
    return (folder / 'x.parquet').read_bytes()


@pytest.fixture
def wild(hub, tmp_path):
    """A data set with the layout of WildChat-1M; returns the ids of its conversations."""
    parts = [
        [raw_conversation(f'{part}.{n}', f'What is thing {part * 77} of {n * 7919}?', 'So.') for n in range(5)]
        for part in 'ab'
    ]
    files = {f'data/train-0000{at}-of-00002.parquet': parquet(tmp_path, part) for at, part in enumerate(parts)}
    hub.repos[WILD] = {OLD: {'README.md': b'Wild.', 'extra/notes.jsonl': b'no json\n', **files}}
    return [record['conversation_hash'] for part in parts for record in part]


def environment(hub, tmp_path, **more) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'HUGGING', 'TRANSFORMERS'))
    }
    return kept | dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'cache'), HF_HUB_DISABLE_PROGRESS_BARS='1') | more


def start(module: str, hub, tmp_path, *flags: str, **more: str) -> subprocess.Popen:
    command = [sys.executable, '-m', module, *flags]
    env = environment(hub, tmp_path, **more)
    return subprocess.Popen(command, cwd=tiny.ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)


def start_ingest(hub, tmp_path, raw: str, to: str, **more: str) -> subprocess.Popen:
    flags = (f'--config={tiny.CONFIG}', f'--config.data.raw={raw}', f'--config.data.conversations={tmp_path / to}')
    return start('data_pipelines.ingest', hub, tmp_path, *flags, **more)


def refusal(process: subprocess.Popen) -> str:
    error = process.communicate()[1]
    assert process.returncode == 2, error
    return error.splitlines()[-1]


def test_data_set_is_read_at_one_commit_that_the_manifest_names(hub, wild, tmp_path):
    assert start_ingest(hub, tmp_path, 'hf://own/wild/data', 'first').wait() == 0
    first = config(tmp_path, conversations=str(tmp_path / 'first'))
    assert sorted(record['id'] for record in records(first)) == sorted(wild)
    assert sorted(hub.sent) == sorted(file for file in hub.repos[WILD][OLD] if file.startswith('data/'))
    made_from = read_json(tmp_path / 'first' / 'manifest.json', '')['made_from']
    assert made_from['settings']['hub'] == [f'hf://own/wild@{OLD}']
    for file in hub.sent:  # a local copy of the repository gives the same records
        (tmp_path / 'local' / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'local' / file).write_bytes(hub.repos[WILD][OLD][file])
    (tmp_path / 'local' / '.git').mkdir()
    write_lines(tmp_path / 'local' / '.git' / 'x.jsonl', [raw_conversation('hidden', 'What?', 'So.')])
    local = config(tmp_path, raw=str(tmp_path / 'local'), conversations=str(tmp_path / 'of local'))
    ingest.STAGE.run(local)
    assert output(local) == output(first)

    more = parquet(tmp_path, [raw_conversation('c.0', 'And what is that?', 'So.')])
    hub.repos[WILD][NEW] = hub.repos[WILD][OLD] | {'data/train-00002-of-00003.parquet': more}
    assert 'made with different input' in refusal(start_ingest(hub, tmp_path, 'hf://own/wild/data', 'first'))
    pinned = f'hf://datasets/own/wild@{OLD}/data/*.parquet'
    assert start_ingest(hub, tmp_path, pinned, 'first').wait() == 0
    assert len(hub.sent) == 3, 'cached files were downloaded again'
    hub.close()
    assert start_ingest(hub, tmp_path, pinned, 'first', HF_HUB_OFFLINE='1').wait() == 0


def test_killed_download_resumes_and_is_not_mistaken_for_a_whole_one(hub, wild, tmp_path):
    first, last = (file for file in hub.repos[WILD][OLD] if file.startswith('data/'))
    hub.held.add(last)
    process = start_ingest(hub, tmp_path, 'hf://own/wild/data', 'out')
    while process.poll() is None and not list((tmp_path / 'cache').glob(f'**/snapshots/{OLD}/{first}')):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert hub.sent == [first]
    offline = start_ingest(hub, tmp_path, 'hf://own/wild/data', 'out', HF_HUB_OFFLINE='1')
    assert 'incomplete' in refusal(offline) and not (tmp_path / 'out').exists()
    hub.held.clear()
    assert start_ingest(hub, tmp_path, 'hf://own/wild/data', 'out').wait() == 0
    assert hub.sent == [first, last] and len(records(config(tmp_path, conversations=str(tmp_path / 'out')))) == len(
        wild
    )


REFUSED = {
    'hf://own': ('not of the form hf://OWNER/NAME[@REVISION][/PATH]',),
    'hf://own/none': ('no public dataset own/none', 'correct the name', 'HF_TOKEN'),
    'hf://own/shut': ('hf://own/shut is gated', 'request access', 'hf auth login'),
    'hf://own/wild@v9': ('no revision v9', 'an existing branch, tag or commit'),
    'hf://own/wild/none': ('has no file that matches none/*.jsonl',),
}
PRINT_REFUSALS = """
import sys
from data_pipelines.ingest import from_hub
from rlhi_jax.io.errors import UserError, one_line
for name in sys.argv[1:]:
    try:
        print('no refusal of', from_hub(name))
    except UserError as error:
        print(one_line(error))
"""


def test_unreadable_repositories_are_refused_by_name(hub, wild, tmp_path):
    hub.repos['/datasets/own/shut'] = hub.repos[WILD]
    hub.gated.add('/datasets/own/shut')

    def ask(*names: str) -> list[str]:
        env = environment(hub, tmp_path)
        command = [sys.executable, '-c', PRINT_REFUSALS, *names]
        return subprocess.run(
            command, cwd=tiny.ROOT, env=env, check=True, capture_output=True, text=True
        ).stdout.splitlines()

    for line, (name, expected) in zip(ask(*REFUSED), REFUSED.items(), strict=True):
        assert line.startswith('config.data.raw: ') and all(word in line for word in expected), (name, line)
    hub.close()
    (line,) = ask('hf://own/wild')
    assert 'hf://own/wild cannot be downloaded' in line and 'run again' in line


def test_model_is_imported_from_the_hub_without_executable_files(hub, tmp_path):
    export_model(tiny.write_model(tmp_path / 'made'), tmp_path / 'exported', step=None, dtype='float32')
    files = {path.name: path.read_bytes() for path in (tmp_path / 'exported').iterdir()}
    hub.repos['/own/model'] = {
        NEW: files | {'pytorch_model.bin': b'x', 'model.py': b'x', 'original/model.safetensors': b'x'}
    }
    flags = ('import', '--source=hf://own/model', f'--to={tmp_path / "ours"}')
    assert start('rlhi_jax.convert', hub, tmp_path, *flags).wait() == 0
    assert set(hub.sent) == set(files) - {'README.md'}
    ours, made = (read_json(tmp_path / name / 'model.json', '') for name in ('ours', 'made'))
    assert ours['source'] == f'hf://own/model@{NEW}' and ours['weights'] == made['weights']
