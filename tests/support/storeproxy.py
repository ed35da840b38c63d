"""Between servers and a store: counts what passes, and makes it slow, fail or stop where a test says so."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.support.stores import Store

__all__ = ["StoreProxy", "proxied"]

Hook = Callable[[str, str], int]
"""Is told the method and the path of each call before it is passed on; 0 lets it pass, else it is the status that the
client gets in its place (-1: the connection ends without a word)."""


class StoreProxy:
    """`store` is the store as servers find it; `hook` may be replaced at any time, and may block."""

    def __init__(self, store: Store, port: int) -> None:
        endpoint = f"http://127.0.0.1:{port}"
        self.store = store._replace(env={**store.env, "AWS_ENDPOINT_URL": endpoint})
        self.hook: Hook = lambda method, path: 0
        self.after: Callable[[str, str], None] = lambda method, path: None
        """Is told of each call once the store has answered, and before the client hears of it."""
        self.calls: list[tuple[str, str]] = []


def _handler(proxy: StoreProxy, target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            proxy.calls.append((self.command, self.path))
            status = proxy.hook(self.command, self.path)
            if status:
                self.close_connection = True
                if status > 0:
                    self.send_response(status)
                    self.send_header("content-length", "0")
                    self.send_header("connection", "close")
                    self.end_headers()
                return
            connection = http.client.HTTPConnection(target, timeout=30)
            with contextlib.closing(connection):
                connection.request(self.command, self.path, body or None, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            proxy.after(self.command, self.path)
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                    self.send_header(name, value)
            length = answer.getheader("content-length") if self.command == "HEAD" else None
            self.send_header("content-length", length or str(len(data)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    return Handler


@contextlib.contextmanager
def proxied(store: Store) -> Iterator[StoreProxy]:
    """A proxy in threads of this process."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, address: Any) -> None:
            """A client that has gone, which tests cause."""

    target = urlsplit(store.endpoint).netloc
    server = Server(("127.0.0.1", 0), BaseHTTPRequestHandler)
    proxy = StoreProxy(store, server.server_address[1])
    server.RequestHandlerClass = _handler(proxy, target)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
