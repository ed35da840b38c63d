"""A small HTTP server in a thread that answers as a test says: by the number of the call, from 0."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["CUT", "Answer", "Call", "serving"]

CUT = -1
"""Instead of a status: the connection is closed in the middle of the answer."""


class Call(NamedTuple):
    path: str
    body: bytes


Answer = Callable[[int, Call], tuple[int, bytes]]


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[Call]]]:
    """Scheme, host and port, and the calls as they came."""
    calls: list[Call] = []
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            call = Call(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(calls)
                calls.append(call)
            status, body = answer(number, call)
            self.send_response(200 if status == CUT else status)
            self.send_header("Content-Length", str(len(body) + (1 if status == CUT else 0)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = status == CUT

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", calls
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
