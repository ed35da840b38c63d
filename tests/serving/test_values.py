"""Values that the engine would answer wrongly are refused; runs that values make fail are the request's fault."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.errors import InferenceFailed, InvalidInput
from app.serving.gateway import Call, Gateway, InputTensor
from app.serving.limits import ModelOptions
from app.serving.registry import ModelState, Registry, Version
from engines.tensor import TensorSpec
from tests.support.fakes import HeldLoop, HeldSession, Sink


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
