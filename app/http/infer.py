"""Answer inference calls. One handler, two faces: `app.http.protocol` (of uvicorn) and `app.http.asgi`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from app.http import codec, compression
from app.http.answers import BINARY, JSON, Answer, refusal
from app.http.bodies import Body
from app.http.errors import OK, HttpError
from app.http.held import Hold, Room
from app.http.memo import Memo
from app.http.wanted import Wanted
from app.http.workers import INLINE_BYTES, Workers
from app.serving.errors import Cancelled, LoadedAnew, ServingError, UnknownModel
from app.serving.fitting import Call, Served
from app.serving.ticket import Outcome, Reply, ReplySink

__all__ = ["Exchange", "Head", "InferHandler"]

log = logging.getLogger(__name__)
_PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class Head(NamedTuple):
    """What the handler reads of a request's head. Absent headers are None (or empty, for the codings)."""

    model: str
    version: str | None
    header_length: bytes | None
    content_encoding: bytes
    accept_encoding: bytes
    request_id: bytes | None

    @staticmethod
    def parse(path: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Head | None:
        """None where the path (percent-encoded, without query) is not that of an inference call."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        version = match[2]
        return Head.of(
            unquote(match[1].decode("latin-1")), None if version is None else version.decode("latin-1"), headers
        )

    @staticmethod
    def of(model: str, version: str | None, headers: Iterable[tuple[bytes, bytes]]) -> Head:
        """For a path that was taken apart already."""
        found = {name: value for name, value in headers if name in _HEADERS}
        return Head(
            model,
            version,
            found.get(b"inference-header-content-length"),
            found.get(b"content-encoding", b""),
            found.get(b"accept-encoding", b""),
            found.get(b"x-request-id"),
        )


_HEADERS = frozenset((b"inference-header-content-length", b"content-encoding", b"accept-encoding", b"x-request-id"))


class Door(Protocol):
    """Serving, as a handler uses it: `app.serving.gateway` here, `app.front.gateway` from another process."""

    @property
    def stopping(self) -> bool: ...

    @property
    def in_flight(self) -> int: ...

    def takes(self, model: str, version: int | None) -> bool:
        """Whether calls for a version may come this way; those that may not go the way of all other requests."""
        ...

    def resolve(self, model: str, version: int | None = None) -> Served: ...

    def submit(
        self, endpoint: Any, call: Call, sink: ReplySink, received_ns: int, *, accepted: bool = False
    ) -> object: ...

    def cancel(self, endpoint: Any, ticket: Any) -> None: ...

    @property
    def is_elsewhere(self) -> bool:
        """Whether a call may be sent back (LoadedAnew), to be looked at again."""
        ...


class InferHandler:
    """Synchronous and without a task or future per request: the answer goes to a callback, now or later."""

    def __init__(
        self, gateway: Door, max_body_bytes: int, *, room: Room | None = None, access_log: bool = False
    ) -> None:
        self.gateway, self.max_body_bytes, self.access_log = gateway, max_body_bytes, access_log
        self.room, self.workers, self.memo = room or Room(2**40), Workers(), Memo()
        self.request_ids = _request_ids()

    @property
    def stopping(self) -> bool:
        """Whether connections should close after their answer."""
        return self.gateway.stopping

    def takes(self, head: Head) -> bool:
        """Whether the call is answered here; else it goes the way of all other requests."""
        try:
            return self.gateway.takes(head.model, _version(head.version, head.model))
        except UnknownModel:  # a version that is no number: the answer that it gets says so
            return True

    @property
    def in_flight(self) -> int:
        """Calls that are not answered: in serving, or with a body that is being packed or unpacked."""
        return self.gateway.in_flight + self.workers.busy

    def start(self, head: Head, body: Body, hold: Hold, reply: Callable[[Answer], None]) -> Exchange | None:
        """Decode and submit. `reply` is called exactly once; before returning (then None) where it was refused.

        The caller has taken the body's bytes, and releases the hold when it is answered or its client has gone.
        """
        exchange = Exchange(self, head, hold, reply)
        exchange.begin(body)
        return None if exchange.answered else exchange

    def refuse(self, head: Head, error: HttpError | ServingError, hold: Hold, reply: Callable[[Answer], None]) -> None:
        """Answer a call whose body was not taken."""
        Exchange(self, head, hold, reply).refuse(error)


def _request_ids() -> Iterator[bytes]:
    """For requests without one; no other process has the same, of this machine (they fork) or of another."""
    first = secrets.token_hex(6).encode()
    return (b"%b-%x" % (first, number) for number in itertools.count(1))


class Exchange:
    """One call from its whole body to its answer: decoded, submitted, and the sink of its ticket."""

    __slots__ = (
        "_accepted", "_body", "_cancelled", "_endpoint", "_handler", "_head", "_hold", "_received_ns", "_reply",
        "_request_id", "_rows", "_ticket", "_wanted", "answered",
    )  # fmt: skip
    _endpoint: Served
    _wanted: Wanted

    def __init__(self, handler: InferHandler, head: Head, hold: Hold, reply: Callable[[Answer], None]) -> None:
        self._received_ns = time.monotonic_ns()
        self._handler, self._head, self._hold, self._reply = handler, head, hold, reply
        self._request_id = head.request_id or next(handler.request_ids)
        self._ticket: object | None = None
        self._body: Body | None = None
        self._rows = 0
        self._accepted = not handler.stopping  # its decoding may outlast that; it is answered all the same
        self.answered = self._cancelled = False

    def begin(self, body: Body) -> None:
        """Take the body to the gateway; through a thread where it is large, and coded or JSON."""
        try:
            self._endpoint = self._resolve()
        except ServingError as error:
            self._fail(error)
            return
        coding = self._head.content_encoding
        if coding and compression.is_coded(name := coding.decode("latin-1").strip().lower()):
            self._unpack(body, name)
        else:
            self._decode(body)

    def cancel(self) -> None:
        """The client has gone: whatever becomes of the call, nobody is told."""
        self._cancelled, self._body = True, None
        if self._ticket is not None:
            self._handler.gateway.cancel(self._endpoint, self._ticket)
        elif not self.answered:
            self._endpoint.stats.ended(Outcome.CANCELLED, self._age_ns(), None)

    def refuse(self, error: BaseException) -> None:
        """Answer with an error that the gateway has not seen; counted where the model is known."""
        known = isinstance(error, (HttpError, ServingError))
        with contextlib.suppress(ServingError):  # there may be no such model, or nobody to ask
            outcome = Outcome.REJECTED if known else Outcome.FAILED
            self._resolve().stats.ended(outcome, self._age_ns(), None, "OTHER")
        self._fail(error)

    def send(self, reply: Reply, *, final: bool) -> None:
        """As the sink of the ticket: encode outputs while the engine's buffers are valid."""
        if isinstance(reply, ServingError):
            if isinstance(reply, LoadedAnew) and self._body is not None:
                self._look_again(self._body)
            else:
                self._fail(reply)
            return
        coding = compression.choose(self._head.accept_encoding) if self._head.accept_encoding else None
        if codec.encoding_takes_long(reply, self._wanted):
            kept = {name: array.copy() for name, array in reply.items()}
            self._handler.workers.run(lambda: _packed(self._encode(kept, self._pause), coding), self._give_made)
            return
        try:
            answer = self._encode(reply)
        except Exception as error:
            self._fail(error)
            return
        if coding is None or len(answer.body) <= INLINE_BYTES:
            self._give(_packed(answer, coding))
        else:
            self._handler.workers.run(functools.partial(_packed, answer, coding), self._give_made)

    # -- the way in ----------------------------------------------------------------------------------------------

    def _resolve(self) -> Served:
        return self._handler.gateway.resolve(self._head.model, _version(self._head.version, self._head.model))

    def _age_ns(self) -> int:
        return time.monotonic_ns() - self._received_ns

    def _unpack(self, body: Body, coding: str) -> None:
        """The loop begins with what the body becomes; a thread goes on where that is large."""
        made = compression.Unpacked()
        try:
            # the body counts as it grows; this ends the work, too, when the client has gone
            parts = compression.counted(
                compression.unpacked(body, coding, self._handler.max_body_bytes), self._hold.take
            )
            whole = len(body) <= INLINE_BYTES and made.fill(parts, INLINE_BYTES)
        except (HttpError, ServingError) as error:
            self.refuse(error)
            return
        if whole:
            self._unpacked(len(body), made.body())
        else:
            rest = functools.partial(made.finish, parts)
            self._handler.workers.run(rest, functools.partial(self._unpacked, len(body)))

    def _unpacked(self, coded_bytes: int, made: bytes | BaseException) -> None:
        if self._cancelled:
            return
        if isinstance(made, BaseException):
            self.refuse(made)
            return
        self._hold.give_back(coded_bytes)  # what came over the wire is no longer there
        self._look_again(made)

    def _look_again(self, body: Body) -> None:
        """The model may have been loaded anew meanwhile."""
        self._ticket = None
        try:
            self._endpoint = self._resolve()
        except ServingError as error:
            self._fail(error)
        else:
            self._decode(body)

    def _decode(self, body: Body) -> None:
        """The loop decodes what it can in some milliseconds; a thread does what takes longer."""
        if self._handler.gateway.is_elsewhere:
            self._body = body
        try:
            if len(body) > INLINE_BYTES and codec.takes_long(body, self._head.header_length):
                work = functools.partial(codec.decode, body, self._head.header_length, self._endpoint, self._pause)
                self._handler.workers.run(work, self._decoded)
                return
            call, self._wanted = self._handler.memo.decode(body, self._head.header_length, self._endpoint)
        except Exception as error:
            self.refuse(error)
            return
        self._submit(call)

    def _pause(self) -> None:
        """In the thread: make way for the loop, which else would wait as long as the interpreter's switch interval."""
        if self._cancelled:
            raise Cancelled("nobody waits for this request any more")
        time.sleep(0)

    def _decoded(self, made: tuple[Call, Wanted] | BaseException) -> None:
        if self._cancelled:
            return
        if isinstance(made, BaseException):
            self.refuse(made)
            return
        call, self._wanted = made
        try:
            self._endpoint = self._resolve()  # the model may have been loaded anew meanwhile
        except ServingError as error:
            self._fail(error)
            return
        self._submit(call)

    def _submit(self, call: Call) -> None:
        if self._handler.access_log:
            self._rows = _rows_of(self._endpoint, call)
        try:
            self._ticket = self._handler.gateway.submit(
                self._endpoint, call, self, self._received_ns, accepted=self._accepted
            )
        except Exception as error:  # the gateway has counted it
            self._fail(error)

    # -- the way out ---------------------------------------------------------------------------------------------

    def _encode(self, outputs: Any, pause: Callable[[], None] = lambda: None) -> Answer:
        body, json_bytes = codec.encode(outputs, self._wanted, self._endpoint, pause)
        headers = [JSON if json_bytes is None else BINARY, (b"x-request-id", self._request_id)]
        if json_bytes is not None:
            headers.append((b"inference-header-content-length", b"%d" % json_bytes))
        return Answer(OK, headers, body)

    def _give_made(self, answer: Answer | BaseException) -> None:
        if isinstance(answer, BaseException):
            self._fail(answer)
        else:
            self._give(answer)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, (HttpError, ServingError)):
            fields = {"request_id": self._request_id.decode("latin-1")}
            log.error("a request or its answer could not be handled", exc_info=error, extra=fields)
        self._give(refusal(error, self._request_id))

    def _give(self, answer: Answer) -> None:
        self.answered = True
        # the ticket refers to this object: nothing of a call may wait for the garbage collector
        self._ticket = self._body = None
        if self._handler.access_log:
            log.info("infer", extra=self._fields(answer))
        self._reply(answer)

    def _fields(self, answer: Answer) -> dict[str, str | int | float]:
        """Of the access log; `bitserve tune --load` reads when it came (Unix time), and its rows (0 = not read)."""
        age_ns = self._age_ns()
        return {
            "request_id": self._request_id.decode("latin-1"), "model": self._head.model, "status": answer.status,
            "duration_ms": round(age_ns / 1e6, 3), "received_s": round(time.time() - age_ns / 1e9, 6),
            "rows": self._rows,
        }  # fmt: skip


def _rows_of(endpoint: Served, call: Call) -> int:
    """For the log: rows along the first axis that was proven, 1 where there is none; 0 where the inputs do not fit."""
    if call.fitted is not None:
        return call.fitted.rows
    for spec in endpoint.inputs:
        if spec.batch_axis is not None:
            shape = call.inputs[spec.name].array.shape if spec.name in call.inputs else ()
            return int(shape[spec.batch_axis]) if len(shape) > spec.batch_axis else 0
    return 1


def _packed(answer: Answer, coding: str | None) -> Answer:
    if coding is None:
        return answer
    headers = [*answer.headers, (b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
    return Answer(answer.status, headers, compression.compress(answer.body, coding))


def _version(text: str | None, model: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UnknownModel(
            f"Request for unknown model: '{model}' version '{text[:20]}' is not found; versions are digits"
        )
    return int(text)
