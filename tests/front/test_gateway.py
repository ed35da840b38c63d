"""A front end's calls, from their check to their answer: each block goes back once, each outcome is counted once."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from app.front.arena import Arena
from app.front.channel import Channel
from app.front.gateway import FrontGateway
from app.front.known import KnownVersions
from app.front.memory import SharedMemory
from app.front.messages import Answer, Ask, Known, Refusal, Version, Withdraw
from app.serving.errors import EngineGone, InferenceFailed, QueueFull
from app.serving.fitting import Call, InputTensor
from app.serving.limits import Limits
from app.serving.ticket import Outcome
from engines.tensor import TensorSpec
from tests.support.fakes import Sink

X, Y = TensorSpec("x", "FP32", (-1, 4), 0), TensorSpec("y", "FP32", (-1, 2), 0)


class Asked:
    """A front end without a process, whose engine is the test."""

    def __init__(self) -> None:
        shared = SharedMemory(1, 2**20)
        self.said: list[Any] = []
        self.arena = Arena(shared.arenas[0])
        self.gateway = FrontGateway(self.arena, KnownVersions(shared.cells[0]))
        self.gateway.connected(cast(Channel, self))
        self.gateway.take(Known(1, [Version(7, 0, "m", 1, True, (X,), (Y,), Limits(8), {})]))
        self.endpoint = self.gateway.resolve("m")
        self.sink = Sink()
        array = np.arange(8, dtype=np.float32).reshape(2, 4)
        self.call = self.gateway.submit(self.endpoint, Call({"x": InputTensor("FP32", array)}), self.sink, 0)
        (self.ask,) = [message for message in self.said if isinstance(message, Ask)]

    def send(self, message: Any) -> None:
        self.said.append(message)

    def counted(self) -> dict[str, int]:
        found = {outcome.value: self.endpoint.stats.request_ns[outcome].count for outcome in Outcome}
        return {name: count for name, count in found.items() if count}


def test_rows_lie_where_the_engine_is_told_and_outputs_are_read_from_there() -> None:
    asked = Asked()
    place = np.ndarray((2, 4), np.float32, asked.arena.view, asked.ask.offset)
    np.testing.assert_array_equal(place.ravel(), np.arange(8))
    np.ndarray((2, 2), np.float32, asked.arena.view, asked.ask.offset)[:] = [[1, 2], [3, 4]]
    asked.gateway.take(Answer(asked.ask.serial, ((0, (2, 2)),)))
    np.testing.assert_array_equal(asked.sink.reply["y"], [[1, 2], [3, 4]])
    assert (asked.counted(), asked.arena.taken_bytes, asked.gateway.in_flight) == ({"success": 1}, 0, 0)


def test_an_answer_that_cannot_be_read_is_a_failure_of_its_own_call() -> None:
    asked = Asked()
    asked.gateway.take(Answer(asked.ask.serial, ((3, (2, 2)),)))
    assert isinstance(asked.sink.reply, InferenceFailed)
    assert (asked.counted(), asked.arena.taken_bytes) == ({"failed": 1}, 0)


def test_what_the_engine_refuses_is_raised_by_its_own_name() -> None:
    asked = Asked()
    asked.gateway.take(Refusal(asked.ask.serial, "QueueFull", "too many"))
    assert isinstance(asked.sink.reply, QueueFull)
    assert str(asked.sink.reply) == "too many"
    assert (asked.counted(), asked.arena.taken_bytes) == ({}, 0), "the engine has counted it"


def test_an_engine_that_goes_leaves_no_call_and_no_block() -> None:
    asked = Asked()
    asked.gateway.lost()
    assert isinstance(asked.sink.reply, EngineGone)
    assert (asked.counted(), asked.arena.taken_bytes, asked.gateway.in_flight) == ({"failed": 1}, 0, 0)
    with pytest.raises(EngineGone):
        asked.gateway.resolve("m")


def test_the_block_of_a_client_that_left_waits_for_the_engine() -> None:
    asked = Asked()
    asked.gateway.cancel(asked.endpoint, asked.call)
    assert asked.said[-1] == Withdraw(asked.ask.serial)
    assert asked.arena.taken_bytes > 0
    asked.gateway.take(Refusal(asked.ask.serial, "Cancelled", "the client has gone"))
    assert (asked.sink.replies, asked.arena.taken_bytes) == ([], 0)
