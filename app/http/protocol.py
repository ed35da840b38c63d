"""The hot path: inference calls answered inside uvicorn's httptools protocol, with no ASGI scope, task or future each.

Everything else goes on to uvicorn and FastAPI. A fast request takes the place of uvicorn's request/response cycle on
its connection (`FastCycle`), so keep-alive, pipelining and shutdown treat both kinds alike. What uvicorn's cycle would
have done is done here: body cap, Expect, timeouts, write flow control, HTTP/1.0, drain and disconnects.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.errors import BadRequest, body_of, too_large
from app.http.infer import Answer, Head, InferHandler, Pending, refusal

if TYPE_CHECKING:
    from app.settings import Settings

__all__ = ["FastCycle", "InferProtocol"]

_STATUS_LINE = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SWEEP_S = 0.5
_LINGER_S = 2.0
_MAX_HEAD_BYTES = 65536


class FastCycle:
    """One inference call on a connection. Has the attributes that uvicorn's protocol reads of its own cycle."""

    def __init__(
        self, protocol: InferProtocol, head: Head, *, keep_alive: bool, expects_continue: bool, announced_bytes: int
    ) -> None:
        self.protocol, self.head, self.keep_alive = protocol, head, keep_alive
        self.announced_bytes = announced_bytes
        self.response_complete = self.disconnected = False
        self.message_event = _NoEvent()
        self.expects_continue = expects_continue
        self.chunks: list[bytes] = []
        self.size = 0
        self.active = self.complete = False
        self.pending: Pending | None = None

    def activate(self) -> None:
        """All earlier requests of the connection are answered: it is this one's turn."""
        self.active = True
        if max(self.size, self.announced_bytes) > self.protocol.handler.max_body_bytes:
            self.refuse_body()
        elif self.complete:
            self.run()
        elif self.expects_continue and not self.chunks:
            self.protocol.transport.write(_CONTINUE)

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self.protocol.handler.max_body_bytes:
            self.chunks.clear()
            if self.active:
                self.refuse_body()
        else:
            self.chunks.append(chunk)

    def refuse_body(self) -> None:
        """Answer 413 at once and close: the rest of the body is not read."""
        self.keep_alive = False
        self.reply(refusal(too_large(self.protocol.handler.max_body_bytes), self.head.request_id or b"-"))

    def finish(self) -> None:
        """The body is complete."""
        self.complete = True
        if self.active and not self.response_complete:
            self.run()

    def run(self) -> None:
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.pending = self.protocol.handler.start(self.head, body, self.reply)

    def reply(self, answer: Answer) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        self.pending = None
        if not self.disconnected:
            self.protocol.write_answer(answer, keep_alive=self.keep_alive)

    def abandon(self) -> None:
        """The client has gone."""
        self.disconnected = True
        self.chunks.clear()
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.cancel()


class _NoEvent:
    """uvicorn wakes its cycles through an asyncio.Event; a fast cycle has nobody to wake."""

    def set(self) -> None:
        pass


class InferProtocol(HttpToolsProtocol):
    """One connection. `configure` makes the subclass that a server uses."""

    handler: ClassVar[InferHandler]
    settings: ClassVar[Settings]
    open: ClassVar[set[InferProtocol]]
    _sweeper: ClassVar[asyncio.TimerHandle | None] = None

    @classmethod
    def configure(cls, handler: InferHandler, settings: Settings) -> type[InferProtocol]:
        """A subclass bound to a handler and its limits, with a register of its own connections."""
        return type("BoundInferProtocol", (cls,), {"handler": handler, "settings": settings, "open": set()})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._current: FastCycle | None = None
        self._waits_since = time.monotonic()
        self._waits_for = "headers"
        self._unsent = self._head_bytes = 0

    # -- connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        kind = type(self)
        kind.open.add(self)
        if len(kind.open) > self.settings.max_connections:
            self._refuse_connection()
        elif kind._sweeper is None:
            kind._sweeper = self.loop.call_later(_SWEEP_S, kind._sweep)

    def _refuse_connection(self) -> None:
        message = f"the server has {self.settings.max_connections} open connections; see setting max_connections"
        self._write(503, [(b"content-type", b"application/json"), (b"retry-after", b"1")], body_of(message), close=True)
        self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        type(self).open.discard(self)
        cycles = [self.cycle, self._current, *(cycle for cycle, _ in self.pipeline)]
        for cycle in cycles:
            if isinstance(cycle, FastCycle) and not cycle.response_complete:
                cycle.abandon()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close when the request in flight is answered. uvicorn's own test covers both kinds of cycle."""
        if self._waits_for == "body" and isinstance(self.cycle, FastCycle) and not self.cycle.complete:
            self.cycle.keep_alive = False
            return
        for cycle, _ in self.pipeline:
            cycle.keep_alive = True  # answered in turn; only the last one closes
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._waits_for == "close":
            return
        if self._waits_for == "idle":
            self._await("headers")
        elif self._waits_for != "headers":
            self._waits_since = time.monotonic()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if isinstance(self.cycle, FastCycle):  # its body was not read; any other request goes on as HTTP/1.1
                self.send_400_response("protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            self.send_400_response(f"invalid HTTP request: {error}")
        if self._waits_for == "headers":
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.send_400_response(f"the request's headers have more than {_MAX_HEAD_BYTES} bytes")

    def eof_received(self) -> None:
        """Half-closed: nobody does that and still waits for an answer, but one that is being written is finished."""
        if self._waits_for == "close":
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's is plain text; every error of this server is JSON."""
        if not self.transport.is_closing() and self._waits_for != "close":
            self._write(400, [(b"content-type", b"application/json")], body_of(msg), close=True)
            self._linger()

    # -- parser callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        if self._waits_for != "headers":
            self._await("headers")

    def on_headers_complete(self) -> None:
        self._await("body")
        self._head_bytes = 0
        path = self.url.partition(b"?")[0]
        if path.endswith(b"/infer") and self.parser.get_method() == b"POST":
            head = Head.parse(path, self.headers)
            if head is not None:
                self._begin_fast(head)
                return
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            self.send_400_response("invalid request target")

    def _begin_fast(self, head: Head) -> None:
        one_one = self.parser.get_http_version() == "1.1"
        earlier = self.cycle
        cycle = FastCycle(
            self,
            head,
            keep_alive=one_one and self.parser.should_keep_alive(),
            expects_continue=self.expect_100_continue and one_one,
            announced_bytes=next((int(v) for n, v in self.headers if n == b"content-length" and v.isdigit()), 0),
        )
        self.cycle = cycle  # type: ignore[assignment]
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, None)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, None))  # type: ignore[arg-type]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, FastCycle):
            super()._start_asgi_task(cycle, app)
        elif not cycle.disconnected:
            self._current = cycle
            cycle.activate()

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, FastCycle):
            if not self.cycle.response_complete:
                self.cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._await("answer")
        if isinstance(self.cycle, FastCycle):
            if not self.cycle.response_complete:
                self.cycle.finish()
        else:
            super().on_message_complete()

    # -- answers -------------------------------------------------------------------------------------------------

    def write_answer(self, answer: Answer, *, keep_alive: bool) -> None:
        if self.transport.is_closing():
            return
        self._write(answer.status, answer.headers, answer.body, close=not keep_alive or self.handler.stopping)
        self.on_response_complete()

    def _write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, close: bool) -> None:
        lines = [_STATUS_LINE[status]]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if close:
            lines.append(b"connection: close\r\n")
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        if len(body) < 65536:
            lines.append(body)
            self.transport.write(b"".join(lines))
        else:  # joining would copy a large body once more
            self.transport.writelines([b"".join(lines), body])
        if close and self._waits_for != "body":
            self.transport.close()
        elif close:
            self._linger()

    def _linger(self) -> None:
        """Say no more, but take (and drop) what the client still sends: closing on unread bytes would reset the
        connection, and the client might lose the answer.
        """
        self._await("close")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Uvicorn's bookkeeping, with the idle time counted by the sweep instead of a timer for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._waits_for == "close":
            return
        if not self.flow.write_paused:
            self.flow.resume_reading()
        if self.pipeline:
            # not from here: a row of pipelined requests that are refused at once would recurse
            self.loop.call_soon(self._start_asgi_task, *self.pipeline.pop())
        elif self.cycle.response_complete:
            self._await("idle")

    def pause_writing(self) -> None:
        """The client reads slower than it asks: take nothing more from it until it has read."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._waits_since = time.monotonic()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._waits_since = time.monotonic()
        self.flow.resume_reading()

    # -- timeouts ------------------------------------------------------------------------------------------------

    def _await(self, what: str) -> None:
        self._waits_for, self._waits_since = what, time.monotonic()

    @classmethod
    def _sweep(cls) -> None:
        """Look at every connection twice a second: cheaper than a timer for each request."""
        cls._sweeper = None
        now_s = time.monotonic()
        for connection in list(cls.open):
            connection._check_time(now_s)
        if cls.open:
            cls._sweeper = next(iter(cls.open)).loop.call_later(_SWEEP_S, cls._sweep)

    def _check_time(self, now_s: float) -> None:
        limits = self.settings
        waited_s = now_s - self._waits_since
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            if unsent != self._unsent:
                self._unsent, self._waits_since = unsent, now_s
            elif waited_s > limits.write_timeout_s:
                self.transport.abort()
        elif (self._waits_for == "close" and waited_s > _LINGER_S) or (
            self._waits_for == "idle" and waited_s > limits.keep_alive_s
        ):
            self.transport.close()
        elif self._waits_for == "headers" and waited_s > limits.header_timeout_s:
            self._time_out("headers", limits.header_timeout_s)
        elif self._waits_for == "body" and waited_s > limits.body_timeout_s:
            self._time_out("body", limits.body_timeout_s)

    def _time_out(self, what: str, limit_s: float) -> None:
        """Answer 400 (the protocol has no 408) where the request had begun, and close."""
        if isinstance(self.cycle, FastCycle) and self.cycle.active and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            error = BadRequest(f"the request's {what} did not arrive within {limit_s:g} s")
            self.cycle.reply(refusal(error, self.cycle.head.request_id or b"-"))
        else:
            self.transport.close()
