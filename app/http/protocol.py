"""The hot path: inference calls answered inside uvicorn's httptools protocol, with no ASGI scope, task or future each.

Everything else goes on to uvicorn and FastAPI. A fast request takes the place of uvicorn's request/response cycle on
its connection (`FastCycle`), so keep-alive, pipelining and shutdown treat both kinds alike. What uvicorn's cycle would
have done is done here: body cap, Expect, timeouts, write flow control, HTTP/1.0, drain and disconnects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.answers import SEND_BODY, Answer, error_answer, wire_parts
from app.http.bodies import announced_bytes
from app.http.cycle import FastCycle, LingeringTransport, head_without_upgrade
from app.http.errors import BadRequest, TooManyConnections
from app.http.infer import Head, InferHandler
from app.http.register import Register
from app.http.repeats import KnownHead, known_head

if TYPE_CHECKING:
    from app.settings import Settings
    from app.tally import Tally

__all__ = ["InferProtocol"]

log = logging.getLogger(__name__)
_LINGER_S = 2.0
_MAX_HEAD_BYTES = 65536
"""Of a request's head, and of whatever else comes without a byte of body in it: trailers, chunk extensions."""


class InferProtocol(HttpToolsProtocol):
    """One connection. `configure` makes the subclass that a server uses.

    `_waits_for` is what the client owes next: headers, (the rest of a) body, nothing until its answer, anything at all
    (idle), or its end of the connection (close). The last is final: the server has said its last word.
    """

    handler: ClassVar[InferHandler]
    settings: ClassVar[Settings]
    register: ClassVar[Register]

    @classmethod
    def configure(
        cls, handler: InferHandler, settings: Settings, connections_open: Tally | None = None
    ) -> type[InferProtocol]:
        """A subclass bound to a handler and its limits, with a register of its own connections.

        `connections_open` counts those that are admitted, in all processes that take any.
        """
        register = Register(settings.max_connections, connections_open)
        return type("BoundInferProtocol", (cls,), {"handler": handler, "settings": settings, "register": register})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._current: Any = None  # the cycle whose answer is the next on the wire
        self._fault: Answer | None = None  # the last, to be given when earlier requests are answered
        self._deaf = False  # what the client still sends is dropped
        self._waits_since = time.monotonic()
        self._waits_for = "headers"
        self._unsent = self._segment_bytes = self._quiet_bytes = self._begun = 0
        self._progress = False
        self._known: KnownHead | None = None

    # -- connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.register.enter(self):
            self._refuse_connection()

    def _refuse_connection(self) -> None:
        """Say why and leave; the client gets time to read it unless refused connections become many themselves."""
        limit = self.settings.max_connections
        error = TooManyConnections(f"the server has {limit} open connections; see setting max_connections")
        self._write(error_answer(error), close=True)
        self._linger()
        if self.register.is_flooded:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.register.leave(self)
        for cycle in (self.cycle, self._current, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                self._withdraw(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close when everything in flight is answered: `cycle` is the last request, uvicorn's test covers both kinds.

        Of one whose body still arrives, the answer (that the server stops) is sent when it has arrived.
        """
        if self._waits_for != "close":
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        between = self._waits_for == "idle"
        if between:
            known = self._known
            if known is not None and (body := known.body_in(data)) is not None and self.handler.takes(known.head):
                self._take_known(known.head, body)
                return
            self._await("headers")
        elif self._waits_for != "headers":
            self._waits_since = time.monotonic()
        self._segment_bytes, self._progress, self._begun = len(data), False, 0
        rest = data
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    between, rest = False, self._decline_upgrade() + rest[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if isinstance(error, httptools.HttpParserCallbackError):
                log.error("a request could not be taken", exc_info=error)
            self.send_400_response(f"invalid HTTP request: {error}")
        self._quiet_bytes = 0 if self._progress else self._quiet_bytes + self._segment_bytes
        if self._quiet_bytes > _MAX_HEAD_BYTES:
            self._refuse_head()
        elif between and self._begun == 1 and self._waits_for in ("answer", "idle"):  # the message is complete
            self._known = known_head(data, self.cycle) or self._known

    def _take_known(self, head: Head, body: bytes) -> None:
        """What the callbacks do of a whole message; the parser stays between two, and sees nothing of it."""
        self._quiet_bytes = 0
        self._await("body")
        cycle = FastCycle(self, head, keep_alive=True, expects_continue=False, announced_bytes=len(body))
        self.cycle = self._current = cycle  # type: ignore[assignment]
        if cycle.take_whole(body):
            self._waits_for = "answer"
            cycle.finish()

    def _decline_upgrade(self) -> bytes:
        """As the protocol allows, the request goes on as HTTP/1.1 (Java's client offers h2c on every first one).

        The parser would not read its body: so its head is parsed anew, without the offer.
        """
        method = self.parser.get_method()
        if self._deaf or method == b"CONNECT":
            self.send_400_response("method CONNECT is not supported")
            return b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return head_without_upgrade(method, self.url, self.headers)

    def eof_received(self) -> None:
        """The client has closed its half: nobody does that and still waits for an answer, so it has gone.

        The transport closes by itself then, after it has sent what is written.
        """

    def send_400_response(self, msg: str) -> None:
        """What comes next cannot be understood. Uvicorn's is plain text; every error of this server is JSON."""
        self.end_with(error_answer(BadRequest(msg)))

    def end_with(self, answer: Answer) -> None:
        """Nothing that comes next will be read: say so, after the answers that are due before it, and close."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf, self._fault = True, answer
        if self._waits_for == "body":  # the last request itself is broken
            if self.cycle.response_complete:
                self._linger()  # and it has had its answer
                return
            self._withdraw(self.cycle)
            if self.pipeline:
                self.pipeline.popleft()
        if not self._owes():
            self._say_fault()

    def _owes(self) -> bool:
        current = self._current
        return bool(self.pipeline) or not (current is None or current.response_complete or current.disconnected)

    def _withdraw(self, cycle: Any) -> None:
        if isinstance(cycle, FastCycle):
            cycle.abandon()
        else:
            cycle.disconnected = True
            cycle.message_event.set()

    def _say_fault(self) -> None:
        assert self._fault is not None
        self._write(self._fault, close=True)
        self._linger()

    def _refuse_head(self) -> None:
        self.send_400_response(f"the request's headers (or trailers) have more than {_MAX_HEAD_BYTES} bytes")

    # -- parser callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._begun += 1
        if not self._deaf and self._waits_for != "headers":
            self._await("headers")

    def on_headers_complete(self) -> None:
        self._progress = True
        if self._deaf or self.parser.should_upgrade():
            return
        if self._quiet_bytes + self._segment_bytes > _MAX_HEAD_BYTES and self._head_bytes() > _MAX_HEAD_BYTES:
            self._refuse_head()
            return
        path = self.url.partition(b"?")[0]
        if path.endswith(b"/infer") and self.parser.get_method() == b"POST":
            head = Head.parse(path, self.headers)
            if head is not None and self.handler.takes(head):
                self._await("body")
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
        else:
            self.cycle.transport = LingeringTransport(self.transport, self.close_politely)
            self._await("body")

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _begin_fast(self, head: Head) -> None:
        one_one = self.parser.get_http_version() == "1.1"
        earlier = self.cycle
        cycle = FastCycle(
            self,
            head,
            keep_alive=one_one and self.parser.should_keep_alive(),
            expects_continue=self.expect_100_continue and one_one,
            announced_bytes=announced_bytes(self.headers),
        )
        self.cycle = cycle  # type: ignore[assignment]
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, None)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, None))  # type: ignore[arg-type]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._current = cycle
        if isinstance(cycle, FastCycle):
            cycle.activate()
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._progress = True
        if self._deaf:
            return
        if isinstance(self.cycle, FastCycle):
            if not self.cycle.response_complete:
                self.cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        if self._deaf or self.parser.should_upgrade():
            return
        self._await("idle" if self.cycle.response_complete else "answer")
        if isinstance(self.cycle, FastCycle):
            if not self.cycle.response_complete:
                self.cycle.finish()
        else:
            super().on_message_complete()

    # -- answers -------------------------------------------------------------------------------------------------

    def ask_for_body(self) -> None:
        """The client waits for leave to send its body (Expect: 100-continue)."""
        self.transport.write(SEND_BODY)

    def write_answer(self, answer: Answer, *, keep_alive: bool) -> None:
        """Write the answer of the current cycle. While stopping, the last one of the connection closes it."""
        if self.transport.is_closing() or self._waits_for == "close":
            return
        more = bool(self.pipeline) or self._fault is not None
        close = not keep_alive or (self.handler.stopping and not more)
        self._write(answer, close=close)
        if close:
            self.close_politely()
        self.on_response_complete()

    def close_politely(self) -> None:
        """Close after an answer; at once only where nothing can be on its way here that would reset the connection."""
        if self._waits_for == "answer" and not self.pipeline and self._fault is None:
            self.transport.close()
        else:
            self._linger()

    def _write(self, answer: Answer, *, close: bool) -> None:
        self.transport.writelines(wire_parts(answer, close=close))

    def _linger(self) -> None:
        """Say no more, but take (and drop) what the client still sends: closing on unread bytes would reset the
        connection, and the client might lose the answer.
        """
        self._await("close")
        self._deaf = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Uvicorn's bookkeeping, with the idle time counted by the sweep instead of a timer for each request.

        Nothing more is read while requests wait their turn, and none starts while the client does not take answers:
        that is what bounds a connection's memory.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._waits_for == "close":
            return
        if self.pipeline:  # not from here: a row of requests that are refused at once would recurse
            self.loop.call_soon(self._start_next)
        elif self._fault is not None:
            self._say_fault()
        else:
            if not self.flow.write_paused:
                self.flow.resume_reading()
            if self._waits_for == "answer":
                self._await("idle")

    def _start_next(self) -> None:
        ended = self.transport.is_closing() or self._waits_for == "close"
        if ended or self.flow.write_paused or not self.pipeline or not self._current.response_complete:
            return
        cycle, app = self.pipeline.pop()
        if not self.pipeline:
            self.flow.resume_reading()  # of the last one, the body may not be here yet
        self._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """The client reads slower than it asks: take nothing more from it until it has read."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._waits_since = time.monotonic()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._waits_since = time.monotonic()
        if self.pipeline:
            self._start_next()
        else:
            self.flow.resume_reading()

    # -- timeouts ------------------------------------------------------------------------------------------------

    def _await(self, what: str) -> None:
        if self._waits_for != "close":
            self._waits_for, self._waits_since = what, time.monotonic()

    def check_time(self, now_s: float) -> None:
        """Of the register: end what a client does not go on with."""
        limits, state = self.settings, self._waits_for
        waited_s = now_s - self._waits_since
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            if unsent != self._unsent:
                self._unsent, self._waits_since = unsent, now_s
            elif waited_s > limits.write_timeout_s:
                self.transport.abort()
        elif (state == "close" and waited_s > _LINGER_S) or (state == "idle" and waited_s > limits.keep_alive_s):
            self.transport.close()
        elif self.flow.read_paused:  # the server does not listen: the client is not late
            self._waits_since = now_s
        elif state == "headers" and waited_s > limits.header_timeout_s:
            if self._segment_bytes:
                self.send_400_response(f"the request's headers did not arrive within {limits.header_timeout_s:g} s")
            else:  # it never said a word
                self.transport.close()
        elif state == "body" and waited_s > limits.body_timeout_s:
            self.send_400_response(f"nothing of the request's body arrived within {limits.body_timeout_s:g} s")
