"""The door: what fits a model, what is refused and in which words, and that every refusal is counted."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.errors import InvalidInput, Stopping
from app.serving.fitting import Call, InputTensor
from app.serving.gateway import Gateway
from app.serving.limits import Limits, ModelOptions
from app.serving.registry import ModelState, Registry, Version
from engines.tensor import TensorSpec
from tests.support.fakes import MS, Bench, HeldLoop, HeldSession, Sink

INPUTS = [TensorSpec("x", "FP32", (-1, 16), 0), TensorSpec("state", "FP32", (2, -1, 3), 1)]
OUTPUTS = [TensorSpec("y", "FP32", (-1, 16), 0), TensorSpec("next", "FP32", (2, -1, 3), 1)]


class Door:
    def __init__(self, inputs: list[TensorSpec] = INPUTS, max_batch_rows: int = 8) -> None:
        self.loop = HeldLoop()
        device = Device(self.loop, 1, clock=lambda: self.loop.now_ns)
        self.session = HeldSession(function=lambda given: {"y": given["x"], "next": given["state"]})
        options = ModelOptions(Limits(max_batch_rows))
        self.endpoint = Endpoint("m", 1, inputs, OUTPUTS, self.session, options, device)
        registry = Registry()
        registry.set(Version("m", 1, ModelState.READY, endpoint=self.endpoint))
        self.gateway = Gateway(registry, device)
        self.sink = Sink()

    def submit(self, outputs: tuple[str, ...] | None = None, **inputs: tuple[str, tuple[int, ...]]) -> None:
        tensors = {name: InputTensor(kind, np.zeros(shape, np.float32)) for name, (kind, shape) in inputs.items()}
        self.gateway.submit(self.endpoint, Call(tensors, outputs), self.sink, self.loop.now_ns)
        self.loop.run()


GOOD = {"x": ("FP32", (3, 16)), "state": ("FP32", (2, 3, 3))}

REFUSED = {
    "too few inputs": (
        {"x": GOOD["x"]},
        "expected 2 inputs but got 1 inputs for model 'm'; it takes 'x', 'state'",
    ),
    "too many inputs": (
        {**GOOD, "z": GOOD["x"]},
        "expected 2 inputs but got 3 inputs for model 'm'; it takes 'x', 'state'",
    ),
    "an unknown input": (
        {"x": GOOD["x"], "z": GOOD["x"]},
        "unexpected inference input 'z' for model 'm'; it takes 'state', 'x'",
    ),
    "another datatype": (
        {**GOOD, "x": ("INT64", (3, 16))},
        "inference input 'x' data-type is 'INT64', but model 'm' expects 'FP32'",
    ),
    "no batch dimension": (
        {**GOOD, "x": ("FP32", (16,))},
        "unexpected shape for input 'x' for model 'm'. Expected [-1,16], got [16]",
    ),
    "a dimension of another size": (
        {**GOOD, "state": ("FP32", (2, 3, 4))},
        "unexpected shape for input 'state' for model 'm'. Expected [2,-1,3], got [2,3,4]",
    ),
    "no rows": (
        {**GOOD, "x": ("FP32", (0, 16))},
        "unexpected shape for input 'x' for model 'm'. Expected at least one element in every dimension, got [0,16]",
    ),
    "inputs of different rows": (
        {**GOOD, "state": ("FP32", (2, 4, 3))},
        "input 'state' has 4 rows, other inputs of the request have 3, for model 'm'",
    ),
    "more rows than a batch": (
        {"x": ("FP32", (9, 16)), "state": ("FP32", (2, 9, 3))},
        "inference request batch-size must be <= 8 for 'm', got 9",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_does_not_fit_is_refused_in_tritons_words(inputs: dict, message: str) -> None:
    door = Door()
    with pytest.raises(InvalidInput) as refused:
        door.submit(**inputs)
    assert str(refused.value) == message
    assert door.sink.replies == []
    assert door.endpoint.in_flight == 0
    assert door.endpoint.stats.failures["OTHER"] == 1
    assert door.endpoint.stats.request_ns["rejected"].count == 1
    assert door.endpoint.stats.queue_ns["rejected"].count == 0


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        Door().submit(outputs=("y", "loss"), **GOOD)
    assert str(refused.value) == "unexpected inference output 'loss' for model 'm'; it gives 'next', 'y'"


def test_what_fits_is_answered() -> None:
    door = Door()
    door.submit(outputs=("next",), **GOOD)
    door.session.running[0].finish()
    door.loop.run()
    assert {name: array.shape for name, array in door.sink.reply.items()} == {"next": (2, 3, 3)}


def test_rows_are_counted_along_the_batch_axis_and_shapes_grouped_without_it() -> None:
    door = Door()
    door.gateway.device.hold()
    door.submit(**GOOD)
    assert door.endpoint.queue.rows == 3
    assert [group.key for group in door.endpoint.queue.groups()] == [((16,), (2, 3))]


def test_without_a_row_limit_a_request_may_have_any_rows() -> None:
    door = Door(max_batch_rows=0)
    door.submit(x=("FP32", (5000, 16)), state=("FP32", (2, 5000, 3)))
    assert door.session.launched[0]["x"].shape == (5000, 16)


def test_a_model_without_a_batch_axis_takes_one_row_a_request() -> None:
    inputs = [TensorSpec("x", "FP32", (4, 4)), TensorSpec("state", "FP32", (2, -1))]
    door = Door(inputs, max_batch_rows=0)
    door.gateway.device.hold()
    door.submit(x=("FP32", (4, 4)), state=("FP32", (2, 7)))
    assert door.endpoint.queue.rows == 1
    assert [group.key for group in door.endpoint.queue.groups()] == [((4, 4), (2, 7))]


def test_time_already_spent_on_reading_counts_for_the_request_and_not_for_the_queue() -> None:
    door = Door()
    tensors = {name: InputTensor(kind, np.zeros(shape, np.float32)) for name, (kind, shape) in GOOD.items()}
    door.gateway.submit(door.endpoint, Call(tensors), door.sink, door.loop.now_ns - 700)
    door.loop.run()
    door.session.running[0].finish()
    door.loop.run()
    assert door.endpoint.stats.request_ns["success"].total == 700
    assert door.endpoint.stats.queue_ns["success"].total == 0


def test_a_stopping_server_refuses_and_answers_what_it_accepted() -> None:
    bench = Bench()
    accepted = bench.send(1, 5)
    bench.gateway.stop()
    assert bench.gateway.in_flight == 1
    with pytest.raises(Stopping) as refused:
        bench.send()
    assert str(refused.value) == ("Server is stopping, scheduler for m has stopped accepting new inference requests")
    assert bench.stats.failures["REJECTED"] == 1
    bench.finish()
    assert accepted.values == [5]
    assert bench.gateway.in_flight == 0


def test_after_the_loss_of_a_gpu_it_is_spent_once_nobody_waits_or_some_seconds_later() -> None:
    idle, busy = Door(), Door()
    busy.submit(**GOOD)
    assert busy.gateway.in_flight == 1
    for door in (idle, busy):
        assert not door.gateway.is_spent
        door.gateway.lose("it fell off the bus")
        door.gateway.lose("and again")
        assert door.gateway.lost == "it fell off the bus"
    assert (idle.gateway.is_spent, busy.gateway.is_spent) == (True, False)
    busy.loop.advance(4_999 * MS)
    busy.gateway.lose("a second one does not begin it anew")
    assert not busy.gateway.is_spent
    busy.loop.advance(1 * MS)
    assert busy.gateway.is_spent, "others that are served could keep it alive for ever"
