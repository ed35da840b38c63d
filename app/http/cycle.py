"""One inference call on a connection, in the place of uvicorn's request/response cycle. Parses and writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from app.http.answers import Answer
from app.http.bodies import Body, add_part, whole
from app.http.errors import HttpError, too_large
from app.http.held import Hold
from app.http.infer import Exchange, Head, InferHandler
from app.serving.errors import QueueFull, ServingError

__all__ = ["Connection", "FastCycle", "LingeringTransport", "head_without_upgrade"]


class Connection(Protocol):
    """What a cycle needs of the connection that it is a call on."""

    @property
    def handler(self) -> InferHandler: ...

    def write_answer(self, answer: Answer, *, keep_alive: bool) -> None: ...

    def ask_for_body(self) -> None: ...

    def end_with(self, answer: Answer) -> None: ...


class FastCycle:
    """Has the attributes that uvicorn's protocol reads of its own cycle."""

    def __init__(
        self, connection: Connection, head: Head, *, keep_alive: bool, expects_continue: bool, announced_bytes: int
    ) -> None:
        self.connection, self.head, self.keep_alive = connection, head, keep_alive
        self.announced_bytes, self.expects_continue = announced_bytes, expects_continue
        self.response_complete = self.disconnected = False
        self.message_event = _NoEvent()
        self.chunks: list[Body] = []
        self.size = 0
        self.hold = Hold(connection.handler.room)
        self.active = self.complete = False
        self.exchange: Exchange | None = None

    def activate(self) -> None:
        """All earlier requests of the connection are answered: it is this one's turn."""
        self.active = True
        if max(self.size, self.announced_bytes) > self.connection.handler.max_body_bytes:
            self._refuse_size()
            return
        try:
            self.hold.check(max(0, self.announced_bytes - self.size))
        except QueueFull as error:
            self._refuse(error)
            return
        if self.complete:
            self.run()
        elif self.expects_continue and not self.chunks:
            self.connection.ask_for_body()

    def add(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.size += len(chunk)
        if self.size > self.connection.handler.max_body_bytes:
            self._drop_body()
            if self.active:
                self._refuse_size()
            return
        try:
            self.hold.take(len(chunk))
        except QueueFull as error:
            self._drop_body()
            self._refuse(error)
        else:
            if self.chunks:
                add_part(self.chunks, chunk)
            else:  # most bodies have one part
                self.chunks.append(chunk)

    def take_whole(self, body: bytes) -> bool:
        """As `activate` and `add` of all the body that there will be; whether to `finish`, else it is answered."""
        self.active = True
        self.add(body)
        return not self.response_complete

    def _refuse_size(self) -> None:
        self._refuse(too_large(self.connection.handler.max_body_bytes))

    def _refuse(self, error: HttpError | ServingError) -> None:
        """Answer at once and close: the rest of the body is not read. In its turn, where that has not come."""
        self.keep_alive = False
        reply = self.reply if self.active else self.connection.end_with
        self.connection.handler.refuse(self.head, error, self.hold, reply)

    def _drop_body(self) -> None:
        self.chunks.clear()
        self.hold.release()

    def finish(self) -> None:
        """The body is complete."""
        self.complete = True
        if self.active and not self.response_complete:
            self.run()

    def run(self) -> None:
        body = self.chunks[0] if len(self.chunks) == 1 else whole(self.chunks)
        self.chunks.clear()
        self.exchange = self.connection.handler.start(self.head, body, self.hold, self.reply)

    def reply(self, answer: Answer) -> None:
        if self.response_complete:
            return
        self.response_complete = True
        self.exchange = None
        self._drop_body()
        if not self.disconnected:
            self.connection.write_answer(answer, keep_alive=self.keep_alive)

    def abandon(self) -> None:
        """The client has gone, or what it sent is not HTTP: nobody waits for an answer."""
        self.disconnected = True
        self._drop_body()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()


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
