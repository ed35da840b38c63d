"""A front end's connection to the engine process: made anew for as long as the front end runs."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from app.front.channel import Channel
from app.front.gateway import FrontGateway
from app.front.messages import FromEngine, Heard, Hello, Known

__all__ = ["EngineConnection"]

log = logging.getLogger(__name__)
_AGAIN_S = 0.05


class EngineConnection:
    """`start` connects; whoever waits for `first` waits until an engine has said what it serves."""

    def __init__(self, address: str, index: int, gateway: FrontGateway) -> None:
        self._address, self._index, self._gateway = address, index, gateway
        self._connecting: asyncio.Task[None] | None = None
        self.first = asyncio.Event()

    def start(self, after_s: float = 0.0) -> None:
        self._connecting = asyncio.ensure_future(self._connect(after_s))

    async def _connect(self, after_s: float) -> None:
        """The supervisor keeps the address: without an engine, the connection waits there for the next one."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(after_s)
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, self._address)
                _, channel = await loop.create_unix_connection(self._channel, sock=connection)
            except OSError as error:
                connection.close()
                log.warning("the engine process cannot be reached: %s", error.strerror or error)
                await asyncio.sleep(_AGAIN_S)
            else:
                channel.send(Hello(self._index))
                return

    def _channel(self) -> Channel:
        return Channel(FromEngine, self._take, self._lost)

    def _take(self, channel: Channel, message: Any) -> None:
        if isinstance(message, Known):
            if not self._gateway.has_engine:
                self._gateway.connected(channel)
                self.first.set()
            channel.send(Heard(message.number))
        self._gateway.take(message)

    def _lost(self, channel: Channel) -> None:
        if self._gateway.has_engine:
            log.warning("the engine process has ended; requests are answered 503 until it is back")
        self._gateway.lost()
        self.start(_AGAIN_S)
