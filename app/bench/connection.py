"""One keep-alive connection with one request at a time. The parser's callbacks are named as httptools asks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import httptools

__all__ = ["Connection", "Owner", "Pieces"]

Pieces = Sequence[bytes | memoryview]
_OK = 200
"""Below it an answer is another's beginning."""


class Owner(Protocol):
    """Is told of each request's end, once, and of each connection's."""

    def answered(self, connection: Connection, status: int, body: bytes) -> None: ...
    def lost(self, connection: Connection, why: str) -> None: ...


class Connection(asyncio.Protocol):
    """`index` is the request under way, -1 where there is none; its latency counts from `begun_ns`.

    `has_served`: a request has succeeded on it, so losing it is no sign of a server that takes no connection.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._transport: asyncio.Transport
        self.index, self.begun_ns, self.sent_ns, self.has_served, self.why = -1, 0, 0, False, ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is a class of its own

    def send(self, pieces: Pieces, index: int, begun_ns: int, now_ns: int) -> None:
        """Nothing else may be under way."""
        self.index, self.begun_ns, self.sent_ns = index, begun_ns, now_ns
        self._transport.writelines(pieces)

    def abort(self, why: str = "") -> None:
        """`lost` follows, with this reason."""
        self.why = self.why or why
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort("an answer was no HTTP")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < _OK:
            return
        parts, self._body = self._body, []
        self.has_served = self.has_served or status == _OK
        if not self._parser.should_keep_alive():
            self.why = "closed"
        self._owner.answered(self, status, parts[0] if len(parts) == 1 else b"".join(parts))

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.lost(self, self.why or (str(error) if error is not None else ""))
