"""The API over HTTP on a loopback port, and the faults of a network and of an API that is under load."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.kubernetes_api import Answer, Api, Request, Watching
from tests.support.kubernetes_objects import JOBS, Object, Refused, failure
from tests.support.kubernetes_store import Change, Watch

__all__ = ["Fault", "Faults", "Web"]

_LOOKS_EVERY_S = 0.05
"""How often a watch looks whether its client has gone; changes are told at once."""


class Fault:
    """What happens to the next `left` calls whose "METHOD /path" contains `only`.

    `code` answers with a failure. `hang` waits; `drop` ends the connection before the call is served, `lose` after it.
    """

    def __init__(self, kind: str, left: int, only: str, code: int = 0, retry_after_s: int | None = None) -> None:
        self.kind = kind
        self.left = left
        self.only = only
        self.code = code
        self.retry_after_s = retry_after_s


class Faults:
    """Those still to come, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: list[Fault] = []
        self.released = threading.Event()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._coming.append(fault)
            if fault.kind == "hang":
                self.released.clear()

    def take(self, request: Request) -> Fault | None:
        """The one that this call gets."""
        said = f"{request.method} {request.path}"
        with self._lock:
            for fault in self._coming:
                if fault.left and fault.only in said:
                    fault.left -= 1
                    return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._coming.clear()
        self.released.set()


class Web:
    """Listens while it is started. The port stays its own in between: nobody else can get it."""

    def __init__(self, api: Api, faults: Faults, heard: Callable[[Request], None]) -> None:
        self._api, self._faults, self._heard = api, faults, heard
        self._holder = socket.socket()  # bound and not listening: calls are refused, and the port is not free
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.port: int = self._holder.getsockname()[1]
        self._server: _Listener | None = None

    def start(self) -> None:
        if self._server is None:
            self._server = _Listener(("127.0.0.1", self.port), _handler(self._api, self._faults, self._heard))
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Refuse new connections, and cut those there are."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._thread.join()
            self._server = None

    def close(self) -> None:
        self.stop()
        self._holder.close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def handle_error(self, request: Any, address: Any) -> None:
        """A connection that has gone, which tests cause."""


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(api: Api, faults: Faults, heard: Callable[[Request], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            request = self._read()
            heard(request)
            fault = faults.take(request)
            kind = fault.kind if fault is not None else ""
            if kind == "hang":
                faults.released.wait()
            if kind == "drop":
                return self._drop()
            try:
                if fault is not None and fault.code:
                    raise failure(fault.code, fault.retry_after_s)
                answer = api.answer(request, self.headers.get("Authorization", ""))
            except Refused as refused:
                answer = Answer(refused.code, refused.body, refused.headers)
            except Exception as error:  # of this double: nobody would see it otherwise
                api.findings.append(f"{request.method} {request.path}: {type(error).__name__}: {error}")
                answer = Answer(500, failure(500, None).body, {})
            if kind == "lose":
                return self._drop()
            return self._stream(answer) if isinstance(answer, Watching) else self._send(answer)

        def _read(self) -> Request:
            data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            where = urlsplit(self.path)
            body: Any = data.decode("utf-8", "replace") or None
            with contextlib.suppress(ValueError):
                body = json.loads(data) if data else None
            return Request(self.command, where.path, dict(parse_qsl(where.query, keep_blank_values=True)), body)

        def _drop(self) -> None:
            self.close_connection = True
            _cut(self.connection)

        def _send(self, answer: Answer) -> None:
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode() + b"\n"
            self.send_response(answer.code)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            if answer.code != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, watching: Watching) -> None:
            """Changes, until the time is over, the client goes, or a test ends it."""
            try:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if watching.refused is not None:
                    self._chunk(_line("ERROR", watching.refused))
                    return self._chunk(b"")
                return self._follow(watching.watch, watching.timeout_s)
            finally:
                api.store.unwatch(watching.watch)

        def _follow(self, watch: Watch, timeout_s: float | None) -> None:
            deadline_s = time.monotonic() + timeout_s if timeout_s else float("inf")
            changed = api.store.changed
            while True:
                with changed:
                    if not watch.changes and not watch.ending:
                        changed.wait(max(0.0, min(_LOOKS_EVERY_S, deadline_s - time.monotonic())))
                    changes, ending = [*watch.changes], watch.ending
                    watch.changes.clear()
                for change in changes:
                    self._chunk(_event(change))
                if not ending and time.monotonic() < deadline_s:
                    if self._gone():
                        self.close_connection = True
                        return
                    continue
                if ending == "mid_line":
                    line = _event(Change(api.store.version, "MODIFIED", watch.resource, _latest(api, watch)))
                    self._chunk(line[: len(line) // 2])
                if ending in ("lost", "mid_line"):
                    return self._drop()
                return self._chunk(b"")

        def _gone(self) -> bool:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

    return Handler


def _latest(api: Api, watch: Watch) -> Object:
    """Something to tell, for an event that is cut."""
    found = [one for one in api.store.all(watch.resource) if watch.wanted(one)]
    return found[-1] if found else {"metadata": {"name": "of-which-no-more-is-heard"}}


def _line(kind: str, one: Object) -> bytes:
    return json.dumps({"type": kind, "object": one}).encode() + b"\n"


def _event(change: Change) -> bytes:
    if change.kind != "BOOKMARK":
        return _line(change.kind, change.object)
    resource = change.resource
    about = {"resourceVersion": str(change.version), "creationTimestamp": None}
    bare: Object = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": about}
    if resource == JOBS:  # an empty object as Go writes it, which fits no schema
        spec: Object = {"template": {"metadata": {"creationTimestamp": None}, "spec": {"containers": None}}}
        return _line("BOOKMARK", {**bare, "spec": spec, "status": {}})
    return _line("BOOKMARK", {**bare, "spec": {"containers": None}, "status": {}})
