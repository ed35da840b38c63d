"""What is no inference call goes to the engine process's own HTTP server, byte for byte, and its answer comes back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import httptools

from app.http.answers import error_answer
from app.http.errors import CONTINUE
from app.serving.errors import EngineGone

__all__ = ["Proxy"]

_PIECE_BYTES = 262_144
_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
"""Headers of a connection, not of a message (RFC 9110, 7.6.1)."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Proxy:
    """An ASGI application. `address` is a Unix socket's; one connection a request, since these are few."""

    def __init__(self, address: str, has_engine: Callable[[], bool], gone: str) -> None:
        self._address, self._has_engine, self._gone = address, has_engine, gone

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if not self._has_engine():
            await self._refuse(send)
            return
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, self._address)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except OSError:
            connection.close()
            await self._refuse(send)
            return
        call = _Call(scope, receive, send, reader, writer)
        try:
            if not await call.run():
                await self._refuse(send)
        finally:
            writer.transport.abort()

    async def _refuse(self, send: Send) -> None:
        status, headers, body = error_answer(EngineGone(self._gone))
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})


class _Call:
    """One request on its way to the engine, and its answer on the way back, at the same time."""

    def __init__(
        self, scope: Message, receive: Receive, send: Send, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._reader, self._writer = reader, writer
        headers = scope["headers"]
        self._is_chunked = any(name == b"transfer-encoding" for name, _ in headers)
        self._waits = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
        self._may_send = asyncio.Event()
        self._client_left = self._has_body = False
        self._answer = _Answer(is_head=scope["method"] == "HEAD")

    async def run(self) -> bool:
        """False where the engine has gone before a word of its answer; the client may have gone, too."""
        self._writer.write(_head(self._scope, is_chunked=self._is_chunked))
        pump = asyncio.ensure_future(self._pump())
        try:
            await self._give_back()
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await pump
        return self._answer.started or self._client_left

    async def _pump(self) -> None:
        """The body, as it comes, until the client leaves."""
        if self._waits:  # for the engine's word, which the client waits for
            await self._may_send.wait()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._leave()
                return
            self._write(message.get("body", b""))
            await self._writer.drain()
            more = message.get("more_body", False)
        if self._is_chunked:
            self._writer.write(b"0\r\n\r\n")
        self._has_body = True
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _write(self, body: bytes) -> None:
        if not self._is_chunked:
            self._writer.write(body)
        elif body:  # an empty chunk would be the last one
            self._writer.write(b"%x\r\n%b\r\n" % (len(body), body))

    def _leave(self) -> None:
        self._client_left = True
        self._writer.transport.abort()

    async def _give_back(self) -> None:
        answer = self._answer
        while not answer.complete:
            try:
                piece = await self._reader.read(_PIECE_BYTES)
            except ConnectionError:
                return
            if not piece:
                return
            answer.feed(piece)
            if answer.may_send:
                self._may_send.set()
            if answer.status and not answer.started:
                answer.started = True
                headers = answer.headers
                if answer.closes and not self._has_body:  # it does not read the rest: no more can we
                    headers.append((b"connection", b"close"))
                await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
            if answer.started:
                body = answer.take_body()
                await self._send({"type": "http.response.body", "body": body, "more_body": not answer.complete})


class _Answer:
    """What has come of the engine's answer. `status` 0: its headers have not."""

    def __init__(self, *, is_head: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._is_head = is_head
        self._headers: list[tuple[bytes, bytes]] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self.status = 0
        self.started = self.complete = self.may_send = self.closes = False

    def feed(self, piece: bytes) -> None:
        self._parser.feed_data(piece)

    def take_body(self) -> bytes:
        body = b"".join(self._body)
        self._body.clear()
        return body

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status == CONTINUE:
            self.may_send = True
            return
        self.status = status
        self.headers = [(name, value) for name, value in headers if name not in _HOP]
        self.closes = (b"connection", b"close") in headers
        self.complete = self._is_head

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.complete = self.complete or bool(self.status)


def _head(scope: Message, *, is_chunked: bool) -> bytes:
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode("ascii"), target)]
    lines += _lines(scope["headers"], {*_HOP, b"content-length"} if is_chunked else _HOP)
    if is_chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    return b"".join((*lines, b"\r\n"))


def _lines(headers: Iterable[tuple[bytes, bytes]], without: Iterable[bytes]) -> list[bytes]:
    return [b"%b: %b\r\n" % (name, value) for name, value in headers if name not in without]
