"""The engine process's side: what front ends ask becomes tickets of its gateway, and their answers go back."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

import numpy as np

from app.front import layout
from app.front.announcing import Announcer
from app.front.channel import Channel
from app.front.memory import SharedMemory
from app.front.messages import Answer, Ask, FromFront, Heard, Hello, Refusal
from app.front.peers import peer_uid
from app.serving.endpoint import Endpoint
from app.serving.errors import InferenceFailed, LoadedAnew, ServingError
from app.serving.fitting import Call, Fitted, row_shape
from app.serving.gateway import Gateway
from app.serving.ticket import Reply, Ticket

__all__ = ["Links"]

log = logging.getLogger(__name__)
_ANEW = "the model was loaded anew while this request was on its way; try again"


class _OwnChannel(Channel):
    """Hears nobody but processes of the server's own user: its address is no secret, and has no permissions."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if peer_uid(transport) != os.getuid():
            self.close()


class _Link:
    """One front end: its connection, its arena, and its calls that are not answered."""

    def __init__(self, channel: Channel, index: int, arena: memoryview) -> None:
        self.channel, self.index, self.arena = channel, index, arena
        self.calls: dict[int, _Call] = {}


class _Call:
    """The sink of a front end's ticket."""

    __slots__ = ("ask", "endpoint", "link", "ticket")

    def __init__(self, link: _Link, ask: Ask, endpoint: Endpoint) -> None:
        self.link, self.ask, self.endpoint = link, ask, endpoint
        self.ticket: Ticket | None = None

    def send(self, reply: Reply, *, final: bool) -> None:
        """Outputs take the place of the inputs, which nobody reads any more."""
        self.link.calls.pop(self.ask.serial, None)
        self.ticket = None
        if isinstance(reply, ServingError):
            self.refuse(reply)
            return
        try:
            answer = self._answer(reply)
        except Exception as error:
            log.exception("outputs could not be handed to a front end")
            self.refuse(InferenceFailed(f"its outputs could not be handed on: {error}"))
        else:
            self.link.channel.send(answer)

    def refuse(self, error: ServingError) -> None:
        self.link.channel.send(Refusal(self.ask.serial, type(error).__name__, str(error)))

    def _answer(self, reply: Mapping[str, np.ndarray]) -> Answer:
        ask = self.ask
        outputs = [(at, reply[spec.name]) for at, spec in enumerate(self.endpoint.outputs) if spec.name in reply]
        arrays = [array for _, array in outputs]
        needed, data = layout.packed_bytes(arrays), None
        if needed <= ask.size_bytes:
            layout.write(self.link.arena, ask.offset, arrays)
        else:
            made = bytearray(needed)
            layout.write(memoryview(made), 0, arrays)
            data = bytes(made)
        return Answer(ask.serial, tuple((at, array.shape) for at, array in outputs), data)


class Links:
    """All front ends. `count` is how many are connected: while there are any, the engine process does not end."""

    def __init__(self, gateway: Gateway, shared: SharedMemory) -> None:
        self._gateway, self._shared = gateway, shared
        self._links: dict[Channel, _Link] = {}
        self._announcer = Announcer(gateway.registry, shared)
        gateway.counted_elsewhere, gateway.published = self._announcer.counted, self._announcer.published

    @property
    def count(self) -> int:
        return len(self._links)

    async def serve(self, listener: socket.socket) -> asyncio.AbstractServer:
        """Take front ends that connect to this Unix socket."""
        loop = asyncio.get_running_loop()
        return await loop.create_unix_server(lambda: _OwnChannel(FromFront, self._take, self._lost), sock=listener)

    # -- front ends ----------------------------------------------------------------------------------------------

    def _greet(self, channel: Channel, hello: Hello) -> None:
        for earlier, link in list(self._links.items()):
            if link.index == hello.index:  # it has ended, and that was not seen yet
                self._lost(earlier)
        self._links[channel] = _Link(channel, hello.index, memoryview(self._shared.arenas[hello.index]))
        self._announcer.join(channel)

    def _lost(self, channel: Channel) -> None:
        """A front end has ended: its clients have gone with it."""
        link = self._links.pop(channel, None)
        if link is not None:
            channel.close()
            self._announcer.leave(channel)
            for call in list(link.calls.values()):
                self._cancel(call)

    def _cancel(self, call: _Call) -> None:
        if call.ticket is not None:
            self._gateway.cancel(call.endpoint, call.ticket)

    def _take(self, channel: Channel, message: FromFront) -> None:
        link = self._links.get(channel)
        if isinstance(message, Hello):
            self._greet(channel, message)
        elif link is None:
            return
        elif isinstance(message, Ask):
            self._begin(link, message)
        elif isinstance(message, Heard):
            self._announcer.heard(channel, message.number)
        elif message.serial in link.calls:
            self._cancel(link.calls[message.serial])

    # -- calls ---------------------------------------------------------------------------------------------------

    def _begin(self, link: _Link, ask: Ask) -> None:
        try:
            self._submit(link, ask)
        except LoadedAnew as error:  # it looks again, at what it is told first
            self._announcer.tell(link.channel)
            self._refuse(link, ask, error)
        except ServingError as error:
            self._refuse(link, ask, error)
        except Exception as error:
            log.exception("a front end's call could not be taken")
            self._refuse(link, ask, InferenceFailed(f"it could not be taken: {error}"))

    def _refuse(self, link: _Link, ask: Ask, error: ServingError) -> None:
        link.calls.pop(ask.serial, None)
        link.channel.send(Refusal(ask.serial, type(error).__name__, str(error)))

    def _submit(self, link: _Link, ask: Ask) -> None:
        told = self._announcer.told(ask.version)
        if told is None:
            raise LoadedAnew(_ANEW)
        endpoint = self._gateway.resolve(told.model, ask.number)
        if endpoint is not told.endpoint():  # it may take, and give, something else
            raise LoadedAnew(_ANEW)
        arrays = layout.read(link.arena, ask.offset, told.inputs, ask.shapes)
        named = {spec.name: array for spec, array in zip(told.inputs, arrays, strict=True)}
        sink = link.calls[ask.serial] = _Call(link, ask, endpoint)
        wish = Call({}, ask.outputs, ask.priority, ask.timeout_us, ask.sequence_id)
        key = tuple(row_shape(spec, shape) for spec, shape in zip(told.inputs, ask.shapes, strict=True))
        fitted = Fitted(named, ask.rows, key)
        ticket = self._gateway.enqueue(endpoint, fitted, wish, sink, ask.received_ns, accepted=ask.accepted)
        sink.ticket, ticket.timed_by_sink = ticket, True
