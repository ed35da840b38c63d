"""Answer inference calls. One handler, two faces: uvicorn's protocol (`app.http.protocol`) and raw ASGI (here)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from app.http import codec, compression
from app.http.errors import BodyTooLarge, HttpError, body_of, status_of, too_large
from app.serving.endpoint import Endpoint
from app.serving.errors import QueueFull, Rejected, ServingError, UnknownModel
from app.serving.gateway import Gateway
from app.serving.ticket import Reply, Ticket

__all__ = ["Answer", "Head", "InferAsgi", "InferHandler", "Pending", "announced_bytes", "refusal"]

log = logging.getLogger(__name__)
_PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_ids = itertools.count(1)
_ID_PREFIX = f"{os.getpid():x}-{time.time_ns() // 1_000_000:x}"


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


def announced_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Content-Length, or 0 where there is none."""
    return next((int(value) for name, value in headers if name == b"content-length" and value.isdigit()), 0)


_HEADERS = frozenset((b"inference-header-content-length", b"content-encoding", b"accept-encoding", b"x-request-id"))


class Answer(NamedTuple):
    """A whole response; Content-Length is the writer's business."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Pending:
    """A request that waits for its answer. `cancel` when its client has gone."""

    __slots__ = ("_endpoint", "_gateway", "_ticket")

    def __init__(self, gateway: Gateway, endpoint: Endpoint, ticket: Ticket) -> None:
        self._gateway, self._endpoint, self._ticket = gateway, endpoint, ticket

    def cancel(self) -> None:
        self._gateway.cancel(self._endpoint, self._ticket)


class InferHandler:
    """Synchronous and without a task or future per request: the answer goes to a callback, now or later."""

    def __init__(
        self, gateway: Gateway, max_body_bytes: int, *, max_held_bytes: int = 2**40, access_log: bool = False
    ) -> None:
        self._gateway, self.max_body_bytes, self._access_log = gateway, max_body_bytes, access_log
        self.max_held_bytes, self.held_bytes = max_held_bytes, 0
        """Bytes of request bodies that connections hold: arriving, waiting for their turn, or waiting for an answer."""

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many more bytes of bodies may be held; one request alone always may."""
        return not self.held_bytes or self.held_bytes + size_bytes <= self.max_held_bytes

    def no_room(self) -> QueueFull:
        """The error where they may not."""
        return QueueFull(
            f"Exceeds maximum queue size: the server holds {self.held_bytes} bytes of requests; "
            "see setting max_held_bytes"
        )

    @property
    def stopping(self) -> bool:
        """Whether connections should close after their answer."""
        return self._gateway.stopping

    def start(self, head: Head, body: bytes, reply: Callable[[Answer], None]) -> Pending | None:
        """Decode and submit. `reply` is called exactly once; before returning (then None) where it was refused."""
        received_ns = time.monotonic_ns()
        request_id = head.request_id or f"{_ID_PREFIX}-{next(_ids):x}".encode()
        if self._access_log:
            reply = _logged(reply, head, request_id, received_ns)
        try:
            endpoint = self._gateway.resolve(head.model, _version(head.version, head.model))
            if head.content_encoding:
                coding = head.content_encoding.decode("latin-1").strip().lower()
                body = compression.decompress(body, coding, self.max_body_bytes)
            call, wanted = codec.decode(body, head.header_length, endpoint)
            sink = _Sink(endpoint, wanted, head.accept_encoding, request_id, reply)
            ticket = self._gateway.submit(endpoint, call, sink, received_ns)
        except (HttpError, ServingError) as error:
            reply(refusal(error, request_id))
            return None
        except Exception as error:
            log.exception("a request could not be read", extra={"request_id": request_id.decode("latin-1")})
            reply(refusal(error, request_id))
            return None
        return Pending(self._gateway, endpoint, ticket)


def _logged(
    reply: Callable[[Answer], None], head: Head, request_id: bytes, received_ns: int
) -> Callable[[Answer], None]:
    """`reply` that also writes an access log line."""

    def log_and_reply(answer: Answer) -> None:
        taken_ms = round((time.monotonic_ns() - received_ns) / 1e6, 3)
        fields = {"model": head.model, "status": answer.status, "duration_ms": taken_ms}
        log.info("infer", extra={"request_id": request_id.decode("latin-1"), **fields})
        reply(answer)

    return log_and_reply


def _version(text: str | None, model: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UnknownModel(
            f"Request for unknown model: '{model}' version '{text[:20]}' is not found; versions are digits"
        )
    return int(text)


def refusal(error: BaseException, request_id: bytes) -> Answer:
    """The answer that an error becomes. What nobody expected says nothing of our insides."""
    status = status_of(error)
    message = str(error) if isinstance(error, (HttpError, ServingError)) else "internal error; see the server's log"
    headers = [_JSON, (b"x-request-id", request_id)]
    if status == 503:
        retry_s = error.retry_after_s if isinstance(error, Rejected) else 1
        headers.append((b"retry-after", str(retry_s).encode()))
    if status >= 500:
        log.warning(
            "request answered %d: %s",
            status,
            message,
            extra={"request_id": request_id.decode("latin-1"), "status": status},
        )
    return Answer(status, headers, body_of(message))


class _Sink:
    """Encodes outputs while the engine's buffers are valid."""

    __slots__ = ("_accept", "_endpoint", "_reply", "_request_id", "_wanted")

    def __init__(
        self,
        endpoint: Endpoint,
        wanted: codec.Wanted,
        accept: bytes,
        request_id: bytes,
        reply: Callable[[Answer], None],
    ) -> None:
        self._endpoint, self._wanted, self._accept = endpoint, wanted, accept
        self._request_id, self._reply = request_id, reply

    def send(self, reply: Reply, *, final: bool) -> None:
        if isinstance(reply, ServingError):
            self._reply(refusal(reply, self._request_id))
            return
        try:
            answer = self._encode(reply)
        except Exception as error:
            if not isinstance(error, HttpError):
                log.exception("an answer could not be written")
            answer = refusal(error, self._request_id)
        self._reply(answer)

    def _encode(self, outputs: Any) -> Answer:
        body, json_bytes = codec.encode(outputs, self._wanted, self._endpoint)
        headers = [_JSON if json_bytes is None else _BINARY, (b"x-request-id", self._request_id)]
        if json_bytes is not None:
            headers.append((b"inference-header-content-length", str(json_bytes).encode()))
        coding = compression.choose(self._accept) if self._accept else None
        if coding is not None:
            body = compression.compress(body, coding)
            headers.append((b"content-encoding", coding.encode()))
            headers.append((b"vary", b"accept-encoding"))
        return Answer(200, headers, body)


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class InferAsgi:
    """The raw ASGI face, for other servers and in-process tests."""

    def __init__(self, handler: InferHandler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named: dict[str, str] = scope["path_params"]  # of the route, which has decoded what was percent-encoded
        head = Head.of(named["model"], named.get("version"), scope["headers"])
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(given: Answer) -> None:
            if not answer.done():
                answer.set_result(given)

        body = await self._body(scope["headers"], receive)
        if body is None:
            return
        if isinstance(body, BodyTooLarge):
            reply(refusal(body, head.request_id or b"-"))
        else:
            pending = self._handler.start(head, body, reply)
            if pending is not None and not await self._wait(answer, receive, pending):
                return
        status, headers, payload = await answer
        length = (b"content-length", str(len(payload)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": payload})

    async def _body(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes | BodyTooLarge | None:
        """The whole body; None where the client left before its end. One announced as too large is not asked for."""
        if announced_bytes(headers) > self._handler.max_body_bytes:
            return too_large(self._handler.max_body_bytes)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._handler.max_body_bytes:
                return too_large(self._handler.max_body_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    @staticmethod
    async def _wait(answer: asyncio.Future[Answer], receive: Receive, pending: Pending) -> bool:
        """Wait for the answer or the client's departure; False for the latter, or if this task is cancelled."""
        gone: asyncio.Future[Any] = asyncio.ensure_future(receive())
        try:
            while not answer.done():
                waiting: set[asyncio.Future[Any]] = {answer, gone}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    return True
                if gone.result()["type"] == "http.disconnect":
                    pending.cancel()
                    return False
                gone = asyncio.ensure_future(receive())
            return True
        except asyncio.CancelledError:
            pending.cancel()
            raise
        finally:
            gone.cancel()
