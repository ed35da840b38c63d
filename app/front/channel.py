"""One Unix connection between a front end and the engine: messages of one turn of the loop go in one write."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from app.front.messages import Frames, FromEngine, FromFront, frame

__all__ = ["Channel"]

_CREDENTIALS = struct.Struct("3i")
"""struct ucred of <sys/socket.h>: process, user and group."""


class Channel(asyncio.Protocol):
    """`take` gets every message of the other side, `lost` is called once when it has gone."""

    def __init__(self, messages: Any, take: Callable[[Channel, Any], None], lost: Callable[[Channel], None]) -> None:
        self._frames = Frames(msgspec.msgpack.Decoder(list[messages]))
        self._take, self._lost = take, lost
        self._out: list[FromFront | FromEngine] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # of no class of asyncio's, where it is uvloop's

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._take(self, message)

    def send(self, message: FromFront | FromEngine) -> None:
        """Send with what else is sent in this turn. Nothing, where the other side has gone."""
        if self._transport is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(message)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(frame(self._out))
            self._out.clear()

    def peer_uid(self) -> int:
        """The user of the other side, as the system knows it; -1 where it has gone."""
        if self._transport is None:
            return -1
        credentials = self._transport.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        return int(_CREDENTIALS.unpack(credentials)[1])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
