"""A server in this process, for endpoints that need no model behind them."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any


class JsonHandler(http.server.BaseHTTPRequestHandler):
    """Reads and answers requests in JSON, and logs nothing."""

    def request_body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers['Content-Length'])))

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.end_headers()
        with contextlib.suppress(OSError):  # the client closed the connection
            self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The base URL of an endpoint whose requests `handler` answers."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}/v1'
    server.shutdown()
    server.server_close()
