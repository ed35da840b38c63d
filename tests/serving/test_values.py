"""Values that the engine would answer wrongly are refused; runs that values make fail are the request's fault."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.errors import InferenceFailed, InvalidInput
from app.serving.fitting import Call, InputTensor
from app.serving.gateway import Gateway
from app.serving.limits import Limits, ModelOptions
from app.serving.registry import ModelState, Registry, Version
from engines.tensor import TensorSpec
from tests.support.fakes import Bench, HeldLoop, HeldSession, Sent, Sink


def gateway_with(spec: TensorSpec, *, fails_on_values: bool = False) -> tuple[Gateway, Endpoint, HeldLoop, HeldSession]:
    loop, session = HeldLoop(), HeldSession()
    device = Device(loop, 1, clock=lambda: loop.now_ns)
    y = TensorSpec("y", "FP32", (-1, 1), 0)
    endpoint = Endpoint("m", 1, [spec], [y], session, ModelOptions(), device)
    endpoint.fails_on_values = fails_on_values
    gateway = Gateway(Registry(), device)
    gateway.registry.set(Version("m", 1, ModelState.READY, "", endpoint))
    return gateway, endpoint, loop, session


def ask(gateway: Gateway, endpoint: Endpoint, values: list[int], kind: type = np.int64) -> Sink:
    sink = Sink()
    datatype = {np.int64: "INT64", np.uint64: "UINT64", np.float32: "FP32"}[kind]
    gateway.submit(endpoint, Call({"x": InputTensor(datatype, np.array([values], kind))}), sink, 0)
    return sink


@pytest.mark.parametrize("values", [[-3, 2], [0, 0]])
def test_indices_within_the_table_pass(values: list[int]) -> None:
    gateway, endpoint, _, _ = gateway_with(TensorSpec("x", "INT64", (-1, 2), 0, value_range=(-3, 2)))
    ask(gateway, endpoint, values)
    assert endpoint.queue.requests == 1


@pytest.mark.parametrize(("values", "named"), [([0, 3], "3"), ([-4, 0], "-4"), ([2**62, 0], str(2**62))])
def test_an_index_outside_its_table_is_refused(values: list[int], named: str) -> None:
    gateway, endpoint, _, _ = gateway_with(TensorSpec("x", "INT64", (-1, 2), 0, value_range=(-3, 2)))
    with pytest.raises(InvalidInput, match=f"holds {named}; expected whole numbers from -3 to 2"):
        ask(gateway, endpoint, values)
    assert endpoint.queue.requests == 0


def test_integers_that_the_engine_would_cut_are_refused() -> None:
    gateway, endpoint, _, _ = gateway_with(TensorSpec("x", "UINT64", (-1, 1), 0, integer_bits=31))
    ask(gateway, endpoint, [2**31 - 1], np.uint64)
    with pytest.raises(InvalidInput, match="expected whole numbers"):
        ask(gateway, endpoint, [2**31], np.uint64)


@pytest.mark.parametrize(("fails_on_values", "error"), [(True, InvalidInput), (False, InferenceFailed)])
def test_whose_fault_a_failing_run_is(fails_on_values: bool, error: type[Exception]) -> None:
    spec = TensorSpec("x", "FP32", (-1, 1), 0)
    gateway, endpoint, loop, session = gateway_with(spec, fails_on_values=fails_on_values)
    sink = ask(gateway, endpoint, [5], np.float32)
    loop.run()
    session.running[0].finish(RuntimeError("sizes do not fit"))
    loop.run()
    assert type(sink.reply) is error


OPTIONS = [ModelOptions(Limits(4), preserve_ordering=ordered) for ordered in (False, True)]


def spoilt(options: ModelOptions, *values: float, slots: int = 1) -> tuple[Bench, list[Sent]]:
    """A batch of one row for each value, that has failed."""
    bench = Bench(options, slots=slots)
    bench.endpoint.fails_on_values = True
    bench.device.hold()
    sent = [bench.send(1, value) for value in values]
    bench.release()
    assert bench.launched_rows == [len(values)]
    bench.finish(RuntimeError("a size does not fit"))
    return bench, sent


@pytest.mark.parametrize("options", OPTIONS)
def test_values_that_spoil_a_batch_cost_their_own_request_only(options: ModelOptions) -> None:
    bench, (first, guilty, last) = spoilt(options, 1, 2, 3)
    assert not any(one.answered for one in (first, guilty, last))
    for one in (first, guilty, last):
        assert len(bench.session.running) == 1
        bench.finish(RuntimeError("a size does not fit") if one is guilty else None)
        assert one.answered
    assert bench.launched_rows == [3, 1, 1, 1]
    assert (first.values, last.values) == ([1], [3])
    assert isinstance(guilty.reply, InvalidInput)
    assert "cannot run on the values of these inputs: a size does not fit" in str(guilty.reply)
    assert bench.stats.flushes == {"alone": 2}
    assert (bench.stats.failures["BACKEND"], bench.endpoint.in_flight, bench.device.threads_used) == (1, 0, 0)


def test_what_runs_anew_goes_before_what_waits() -> None:
    bench, (first, second) = spoilt(OPTIONS[0], 1, 2)
    late = bench.send(1, 9)
    bench.finish()
    bench.finish()
    assert (first.values, second.values, late.answered) == ([1], [2], False)
    bench.finish()
    assert late.values == [9]


def test_order_is_preserved_through_a_batch_that_runs_anew() -> None:
    bench, (first, second) = spoilt(OPTIONS[1], 1, 2, slots=3)
    late = bench.send(1, 9)
    slots = {slot.inputs["x"][0, 0]: slot for slot in bench.session.running}
    for value, answered in ((9, []), (2, []), (1, [first, second, late])):
        slots[value].finish()
        bench.loop.run()
        assert [one for one in (first, second, late) if one.answered] == answered


@pytest.mark.parametrize("options", OPTIONS)
def test_one_that_leaves_before_it_runs_anew_holds_nobody_up(options: ModelOptions) -> None:
    bench, (first, gone, last) = spoilt(options, 1, 2, 3)
    gone.cancel()
    bench.finish()
    bench.finish()
    assert (first.values, last.values) == ([1], [3])
    assert bench.launched_rows == [3, 1, 1]
    assert bench.endpoint.in_flight == 0


def test_stopping_waits_for_what_runs_anew() -> None:
    bench, (first, second) = spoilt(OPTIONS[0], 1, 2)
    told: list[int] = []
    bench.endpoint.stop(lambda: told.append(1))
    bench.finish()
    assert told == []
    bench.finish()
    assert (told, first.values, second.values) == ([1], [1], [2])


def test_an_endpoint_that_leaves_still_counts_until_it_has_answered() -> None:
    gateway, endpoint, loop, session = gateway_with(TensorSpec("x", "FP32", (-1, 1), 0))
    ask(gateway, endpoint, [5], np.float32)
    told: list[str] = []
    gateway.retire(endpoint, lambda: told.append("stopped"))
    gateway.registry.drop("m", 1)
    loop.run()
    assert (gateway.in_flight, told) == (1, [])
    session.running[0].finish()
    loop.run()
    assert (gateway.in_flight, told) == (0, ["stopped"])
