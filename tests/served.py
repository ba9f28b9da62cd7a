"""A tiny taught model behind a real server, `transformers serve`, and a proxy that spoils the traffic with it."""

import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import tiny

from rlhi_jax.convert import export_model

SPEC = dataclasses.replace(tiny.LOOP_SPEC, width=64, mlp_width=128)
Lesson = tuple[list[dict[str, str]], str]  # messages, and the reply to them


def teach(folder: Path, lessons: list[Lesson], *, steps: int = 400) -> Path:
    """A Hugging Face folder of a model that has learned its lessons by heart, for greedy decoding."""
    import torch
    import transformers

    torch.set_num_threads(1)  # more threads would wait for each other on a busy machine
    export_model(tiny.write_model(folder / 'raw', spec=SPEC), folder / 'taught', step=None, dtype='float32')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'taught')
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / 'taught')
    prompts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for messages, _ in lessons
    ]
    replies = [tokenizer(reply + '<|im_end|>', add_special_tokens=False)['input_ids'] for _, reply in lessons]
    longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
    tokens, labels = torch.zeros(2, len(lessons), longest, dtype=torch.long)
    labels -= 100
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        end = len(prompt) + len(reply)
        tokens[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = tokens[row, len(prompt) : end]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.01, f'the model has not learned its lessons: {loss.item():.3f}'
    model.save_pretrained(folder / 'taught')
    return folder / 'taught'


class Server:
    """`transformers serve` on its own port; it loads the model that a request names."""

    def __init__(self, log: Path):
        self._log = log
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            self.port = probe.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}/v1'
        self.start()

    def start(self) -> None:
        command = [sys.executable, '-c', 'from transformers.cli.transformers import main; main()', 'serve']
        command += ['--host=127.0.0.1', f'--port={self.port}', '--device=cpu']
        env = os.environ | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
        with open(self._log, 'ab') as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def wait(self) -> None:
        """Wait until it takes requests."""
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(('127.0.0.1', self.port)).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < end, self._log.read_text()
                time.sleep(0.1)

    def load(self, model: Path) -> None:
        """Make it load the model, which takes longer than an answer."""
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=120)
        body = json.dumps(dict(model=str(model), messages=[dict(role='user', content='Hi')], max_tokens=1))
        link.request('POST', '/v1/chat/completions', body, {'Content-Type': 'application/json'})
        assert link.getresponse().status == 200

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Proxy:
    """Passes requests on to a server; each of `faults` spoils one, in turn.

    Attributes:
      faults: 'cut' (no answer), 'half' (of the answer), 'slow' (the answer comes after the client's timeout), 'drip' (a
        blank now and then, forever), a status, or bytes to send as the answer.
      instead: returns for a request's fields the status and body to answer with instead of the server's, or None.
      delay: seconds added to each request.
      asked: the fields and headers of every request.
      answered: the fields and the answer of every request that got the server's answer unspoiled.
    """

    def __init__(self, server: Server | None, *, slow: float = 0.0):
        self._server, self._slow = server, slow
        self.reset()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                proxy._answer(self)

            def log_message(self, *args):
                pass

        self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._http.server_port}/v1'
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.faults, self.instead, self.delay = deque(), lambda fields: None, 0.0
        self.asked, self.answered = [], []

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers['Content-Length']))
        fields = json.loads(body)
        self.asked.append((fields, dict(handler.headers)))
        time.sleep(self.delay)
        fault = self.faults.popleft() if self.faults else None
        if fault == 'cut':
            return None
        if fault == 'drip':
            return self._drip(handler)
        if isinstance(fault, bytes):
            return self._send(handler, 200, fault)
        if isinstance(fault, int):
            return self._send(handler, fault, b'{"error": {"message": "Try again."}}')
        if answer := self.instead(fields):
            return self._send(handler, answer[0], json.dumps(answer[1]).encode())
        try:
            link = http.client.HTTPConnection('127.0.0.1', self._server.port, timeout=60)
            link.request('POST', handler.path, body, {'Content-Type': 'application/json'})
            response = link.getresponse()
            status, answer = response.status, response.read()
        except (OSError, http.client.HTTPException):
            return None
        if fault == 'slow':
            time.sleep(self._slow)
            return None
        if self._send(handler, status, answer, len(answer) // 2 if fault == 'half' else None) and not fault:
            self.answered.append((fields, json.loads(answer)))

    @staticmethod
    def _drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):  # until the client hangs up
            while True:
                handler.wfile.write(b' ')
                time.sleep(0.1)

    @staticmethod
    def _send(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, cut: int | None = None) -> bool:
        try:
            handler.send_response(status)
            handler.send_header('Content-Type', 'application/json')
            handler.send_header('Content-Length', str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[:cut])
            return True
        except OSError:  # the client has hung up
            return False
