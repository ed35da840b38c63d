"""The engine process's side: what front ends ask becomes tickets of its gateway, and their answers go back."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence

from app.front import layout
from app.front.announcing import Announcer
from app.front.channel import Channel
from app.front.memory import SharedMemory
from app.front.messages import Answer, Ask, FromFront, Hello, Refusal
from app.serving.endpoint import Endpoint
from app.serving.errors import ServingError
from app.serving.fitting import Call, Fitted, InputTensor
from app.serving.gateway import Gateway
from app.serving.ticket import Reply, Ticket
from engines.tensor import TensorSpec

__all__ = ["Links"]

log = logging.getLogger(__name__)


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
        ask, link = self.ask, self.link
        link.calls.pop(ask.serial, None)
        self.ticket = None
        if isinstance(reply, ServingError):
            link.channel.send(Refusal(ask.serial, type(reply).__name__, str(reply)))
            return
        outputs = [(at, reply[spec.name]) for at, spec in enumerate(self.endpoint.outputs) if spec.name in reply]
        arrays = [array for _, array in outputs]
        needed, data = layout.packed_bytes(arrays), None
        if needed <= ask.size_bytes:
            layout.write(link.arena, ask.offset, arrays)
        else:
            made = bytearray(needed)
            layout.write(memoryview(made), 0, arrays)
            data = bytes(made)
        link.channel.send(Answer(ask.serial, tuple((at, array.shape) for at, array in outputs), data))


class Links:
    """All front ends. `count` is how many are connected: while there are any, the engine process does not end."""

    def __init__(self, gateway: Gateway, shared: SharedMemory) -> None:
        self._gateway, self._shared = gateway, shared
        self._links: dict[Channel, _Link] = {}
        self._announcer = Announcer(gateway.registry, shared, lambda: self._links)
        gateway.counted_elsewhere = self._announcer.counted

    @property
    def count(self) -> int:
        return len(self._links)

    async def serve(self, listener: socket.socket) -> asyncio.AbstractServer:
        """Take front ends that connect to this Unix socket."""
        loop = asyncio.get_running_loop()
        return await loop.create_unix_server(lambda: Channel(FromFront, self._take, self._lost), sock=listener)

    # -- front ends ----------------------------------------------------------------------------------------------

    def _greet(self, channel: Channel, hello: Hello) -> None:
        if channel.peer_uid() != os.getuid():  # the address is no secret, and has no permissions
            channel.close()
            return
        for earlier, link in list(self._links.items()):
            if link.index == hello.index:  # it has ended, and that was not seen yet
                self._lost(earlier)
        self._links[channel] = _Link(channel, hello.index, memoryview(self._shared.arenas[hello.index]))
        self._announcer.tell(channel)

    def _lost(self, channel: Channel) -> None:
        """A front end has ended: its clients have gone with it."""
        link = self._links.pop(channel, None)
        if link is not None:
            channel.close()
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
        elif message.serial in link.calls:
            self._cancel(link.calls[message.serial])

    # -- calls ---------------------------------------------------------------------------------------------------

    def _begin(self, link: _Link, ask: Ask) -> None:
        try:
            self._submit(link, ask)
        except Exception as error:
            if not isinstance(error, ServingError):
                log.exception("a front end's call could not be taken")
            kind = type(error).__name__ if isinstance(error, ServingError) else "InferenceFailed"
            link.calls.pop(ask.serial, None)
            link.channel.send(Refusal(ask.serial, kind, str(error)))

    def _submit(self, link: _Link, ask: Ask) -> None:
        told = self._announcer.told(ask.version)
        endpoint = self._gateway.resolve(told.model, ask.number)
        arrays = layout.read(link.arena, ask.offset, told.inputs, ask.shapes)
        named = {spec.name: array for spec, array in zip(told.inputs, arrays, strict=True)}
        sink = link.calls[ask.serial] = _Call(link, ask, endpoint)
        wish = Call({}, ask.outputs, ask.priority, ask.timeout_us, ask.sequence_id)
        if endpoint is told.endpoint():
            fitted = Fitted(named, ask.rows, _shape_key(told.inputs, ask.shapes))
            ticket = self._gateway.enqueue(endpoint, fitted, wish, sink, ask.received_ns, accepted=ask.accepted)
        else:  # loaded anew since the front end has looked at it: it may take something else
            inputs = {spec.name: InputTensor(spec.datatype, named[spec.name]) for spec in told.inputs}
            call = wish._replace(inputs=inputs)
            ticket = self._gateway.submit(endpoint, call, sink, ask.received_ns, accepted=ask.accepted)
        sink.ticket, ticket.timed_by_sink = ticket, True


def _shape_key(inputs: Sequence[TensorSpec], shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """As `app.serving.fitting.fit` makes it."""
    return tuple(
        shape if spec.batch_axis is None else shape[: spec.batch_axis] + shape[spec.batch_axis + 1 :]
        for spec, shape in zip(inputs, shapes, strict=True)
    )
