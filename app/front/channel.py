"""One Unix connection between a front end and the engine: messages of one turn of the loop go in one write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

from app.front.messages import Frames, FromEngine, FromFront, frame

__all__ = ["Channel"]


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
        out, self._out = self._out, []
        if out and self._transport is not None:
            try:
                self._transport.write(frame(out))
            except Exception:  # what was to be said is lost: so is the other side's trust in this connection
                self.close()
                raise

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
