"""One inference call on a connection, in the place of uvicorn's request/response cycle. Parses and writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from app.http.errors import too_large
from app.http.infer import Answer, Head, InferHandler, Pending, refusal

__all__ = ["Connection", "FastCycle", "LingeringTransport", "head_without_upgrade"]


class Connection(Protocol):
    """What a cycle needs of the connection that it is a call on."""

    @property
    def handler(self) -> InferHandler: ...

    def write_answer(self, answer: Answer, *, keep_alive: bool) -> None: ...

    def ask_for_body(self) -> None: ...

    def send_400_response(self, msg: str) -> None: ...


class FastCycle:
    """Has the attributes that uvicorn's protocol reads of its own cycle."""

    def __init__(
        self, connection: Connection, head: Head, *, keep_alive: bool, expects_continue: bool, announced_bytes: int
    ) -> None:
        self.connection, self.head, self.keep_alive = connection, head, keep_alive
        self.announced_bytes, self.expects_continue = announced_bytes, expects_continue
        self.response_complete = self.disconnected = False
        self.message_event = _NoEvent()
        self.chunks: list[bytes] = []
        self.size = self._held_bytes = 0
        self.active = self.complete = False
        self.pending: Pending | None = None

    def activate(self) -> None:
        """All earlier requests of the connection are answered: it is this one's turn."""
        self.active = True
        if max(self.size, self.announced_bytes) > self.connection.handler.max_body_bytes:
            self.refuse_body()
        elif not self._alone() and not self.connection.handler.has_room(max(0, self.announced_bytes - self.size)):
            self.refuse_for_room()
        elif self.complete:
            self.run()
        elif self.expects_continue and not self.chunks:
            self.connection.ask_for_body()

    def add(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.size += len(chunk)
        if self.size > self.connection.handler.max_body_bytes:
            self._release()
            if self.active:
                self.refuse_body()
        elif self._alone() or self.connection.handler.has_room(len(chunk)):
            self.chunks.append(chunk)
            self._held_bytes += len(chunk)
            self.connection.handler.held_bytes += len(chunk)
        else:
            self.refuse_for_room()

    def refuse_body(self) -> None:
        """Answer 413 at once and close: the rest of the body is not read."""
        self.keep_alive = False
        self.reply(refusal(too_large(self.connection.handler.max_body_bytes), self.head.request_id or b"-"))

    def refuse_for_room(self) -> None:
        """The server holds as much of other requests as it may."""
        self.keep_alive = False
        error = self.connection.handler.no_room()
        self._release()
        if self.active:
            self.reply(refusal(error, self.head.request_id or b"-"))
        else:  # its turn to answer has not come, and its body is lost
            self.connection.send_400_response(str(error))

    def _alone(self) -> bool:
        """Whether no other request is held: one alone may always be as large as max_body_bytes."""
        return self.connection.handler.held_bytes == self._held_bytes

    def _release(self) -> None:
        self.chunks.clear()
        self.connection.handler.held_bytes -= self._held_bytes
        self._held_bytes = 0

    def finish(self) -> None:
        """The body is complete."""
        self.complete = True
        if self.active and not self.response_complete:
            self.run()

    def run(self) -> None:
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.pending = self.connection.handler.start(self.head, body, self.reply)

    def reply(self, answer: Answer) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        self.pending = None
        self._release()
        if not self.disconnected:
            self.connection.write_answer(answer, keep_alive=self.keep_alive)

    def abandon(self) -> None:
        """The client has gone, or what it sent is not HTTP: nobody waits for an answer."""
        self.disconnected = True
        self._release()
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.cancel()


class _NoEvent:
    """uvicorn wakes its cycles through an asyncio.Event; a fast cycle has nobody to wake."""

    def set(self) -> None:
        pass


class LingeringTransport(asyncio.Transport):
    """For uvicorn's own cycle, which closes at once: a client that still sends its body would lose the answer."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport, self._close = transport, close

    def write(self, data: Any) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._close()


def head_without_upgrade(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request as if it had not offered another protocol."""
    lines = [b"%s %s HTTP/1.1\r\n" % (method, target)]
    for name, value in headers:
        tokens = value.split(b",") if name == b"connection" else [value]
        kept = b",".join(token for token in tokens if token.strip().lower() != b"upgrade")
        if name != b"upgrade":
            lines.append(b"%s: %s\r\n" % (name, kept))
    return b"".join((*lines, b"\r\n"))
