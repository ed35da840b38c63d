"""Serving as a front end has it: calls are checked, their rows written to shared memory, and the engine is asked."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from typing import Any

import numpy as np

from app.front import layout
from app.front.arena import Arena, ArenaFull, Block
from app.front.channel import Channel
from app.front.known import KnownVersion, KnownVersions
from app.front.messages import Answer, Ask, Known, Refusal, Withdraw
from app.serving import errors
from app.serving.errors import InvalidInput, QueueFull, Stopping
from app.serving.fitting import Call, fit
from app.serving.ticket import Outcome, ReplySink

__all__ = ["GONE", "FrontGateway"]

log = logging.getLogger(__name__)
GONE = "the engine process has ended and is started anew; try again"
_ERRORS = {name: getattr(errors, name) for name in errors.__all__}


class _Asked:
    """A call that the engine has not answered. `sink` None: its client has gone, and its block waits for the answer."""

    __slots__ = ("block", "endpoint", "received_ns", "rows", "serial", "sink")

    def __init__(
        self, serial: int, endpoint: KnownVersion, block: Block, rows: int, sink: ReplySink, received_ns: int
    ) -> None:
        self.serial, self.endpoint, self.block, self.rows = serial, endpoint, block, rows
        self.sink: ReplySink | None = sink
        self.received_ns = received_ns


class FrontGateway:
    """All methods run on the event loop. Without an engine (`connected` and `lost` say so), every call is refused."""

    def __init__(self, arena: Arena, known: KnownVersions) -> None:
        self.stopping = False
        self.is_elsewhere = True
        self.known = known
        self._arena = arena
        self._channel: Channel | None = None
        self._asked: dict[int, _Asked] = {}
        self._serials = itertools.count(1)

    @property
    def in_flight(self) -> int:
        """Calls that the engine has not answered, and whose client is still there."""
        return sum(asked.sink is not None for asked in self._asked.values())

    @property
    def has_engine(self) -> bool:
        return self._channel is not None

    # -- Door, for the handler -----------------------------------------------------------------------------------

    def takes(self, model: str, version: int | None) -> bool:
        """Whether the version is known here; what is not, the engine itself must say. Without one, nothing is asked."""
        return self._channel is None or self.known.find(model, version) is not None

    def resolve(self, model: str, version: int | None = None) -> KnownVersion:
        """EngineGone where there is no engine, ModelNotReady where the version has gone."""
        if self._channel is None:
            raise errors.EngineGone(GONE)
        return self.known.resolve(model, version)

    def submit(
        self, endpoint: KnownVersion, call: Call, sink: ReplySink, received_ns: int, *, accepted: bool = False
    ) -> _Asked:
        """As the engine's gateway does; what only it can refuse comes to `sink`."""
        try:
            fitted = fit(endpoint, call)
            if self.stopping and not accepted:
                raise Stopping(
                    f"Server is stopping, scheduler for {endpoint.model} has stopped accepting new inference requests"
                )
            if self._channel is None:
                raise errors.EngineGone(GONE)
            arrays = [fitted.arrays[spec.name] for spec in endpoint.inputs]
            block = self._block(layout.packed_bytes(arrays), endpoint.output_bytes(fitted.rows))
        except InvalidInput:
            endpoint.stats.ended(Outcome.REJECTED, time.monotonic_ns() - received_ns, None, "OTHER")
            raise
        except errors.Rejected:
            endpoint.stats.ended(Outcome.REJECTED, time.monotonic_ns() - received_ns, None)
            raise
        layout.write(self._arena.view, block.offset, arrays)
        asked = _Asked(next(self._serials), endpoint, block, fitted.rows, sink, received_ns)
        self._asked[asked.serial] = asked
        self._channel.send(
            Ask(
                asked.serial, endpoint.id, endpoint.asked_number, block.offset, block.size_bytes, fitted.rows,
                tuple(array.shape for array in arrays), call.outputs, received_ns, call.priority, call.timeout_us,
                call.sequence_id, accepted,
            )
        )  # fmt: skip
        return asked

    def cancel(self, endpoint: KnownVersion, asked: _Asked) -> None:
        """The client has gone; the engine answers all the same, and then the block is free."""
        if asked.sink is not None and self._channel is not None:
            asked.sink = None
            self._channel.send(Withdraw(asked.serial))

    def stop(self) -> None:
        """Admit nothing more."""
        self.stopping = True

    # -- the engine's side ---------------------------------------------------------------------------------------

    def connected(self, channel: Channel) -> None:
        """There is an engine, which has told what it serves."""
        self._channel = channel

    def lost(self) -> None:
        """The engine has gone: nobody will write to a block any more, and all that was asked of it is answered."""
        self._channel = None
        self.known.forget()
        asked, self._asked = self._asked, {}
        for one in asked.values():
            self._arena.give_back(one.block)
            if one.sink is not None:
                one.endpoint.stats.ended(Outcome.FAILED, time.monotonic_ns() - one.received_ns, None)
                self._send(one.sink, errors.EngineGone(GONE))

    def take(self, message: Known | Answer | Refusal) -> None:
        """A message of the engine."""
        if isinstance(message, Known):
            self.known.learn(message.versions)
            return
        asked = self._asked.pop(message.serial)
        sink = asked.sink
        if isinstance(message, Refusal):
            self._arena.give_back(asked.block)
            if sink is not None:
                self._send(sink, _ERRORS[message.kind](message.message))
            return
        outcome = Outcome.SUCCESS if sink is None else self._answer(asked, sink, message)
        asked.endpoint.stats.request_ns[outcome].observe(time.monotonic_ns() - asked.received_ns)
        self._arena.give_back(asked.block)

    def _answer(self, asked: _Asked, sink: ReplySink, answer: Answer) -> Outcome:
        try:
            outputs = self._outputs(asked, answer)
        except Exception as error:  # what cannot be read costs its own call only
            log.exception("an answer could not be read")
            self._send(sink, errors.InferenceFailed(f"its outputs could not be read: {error}"))
            return Outcome.FAILED
        self._send(sink, outputs)
        return Outcome.SUCCESS

    def _outputs(self, asked: _Asked, answer: Answer) -> dict[str, np.ndarray]:
        """Views of the block, or of what came in its place."""
        endpoint = asked.endpoint
        specs = [endpoint.outputs[index] for index, _ in answer.outputs]
        memory = self._arena.view if answer.data is None else memoryview(answer.data)
        offset = asked.block.offset if answer.data is None else 0
        arrays = layout.read(memory, offset, specs, [shape for _, shape in answer.outputs])
        if answer.data is not None:
            endpoint.row_bytes = max(endpoint.row_bytes, -(-len(answer.data) // asked.rows))
        return {spec.name: array for spec, array in zip(specs, arrays, strict=True)}

    def _send(self, sink: ReplySink, reply: Any) -> None:
        try:
            sink.send(reply, final=True)
        except Exception:  # a broken sink is one client's loss
            log.exception("an answer could not be delivered")

    def _block(self, input_bytes: int, output_bytes: int) -> Block:
        """For the inputs, and for the outputs after them where there is room: else these come another way."""
        try:
            with contextlib.suppress(ArenaFull):
                return self._arena.take(max(input_bytes, output_bytes))
            return self._arena.take(input_bytes)
        except ArenaFull:
            raise QueueFull(
                f"Exceeds maximum queue size: {self._arena.taken_bytes} bytes of inputs wait for the engine; "
                "see setting max_held_bytes"
            ) from None
