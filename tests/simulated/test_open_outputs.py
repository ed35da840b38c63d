"""Outputs whose sizes depend on values: memory grows as they ask for it, and each slot has its own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import OutOfMemory
from engines.runtime.tensorrt import TensorRtSession
from engines.tensor import TensorSpec
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import Planned


def places() -> Planned:
    """at [1, found]: where x [64] is not zero, beside y = -x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])
    at = helper.make_tensor_value_info("at", TensorProto.INT64, [1, "found"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])
    nodes = [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Neg", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "places", [x], [at, y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    outputs = [TensorSpec("at", "INT64", (1, -1)), TensorSpec("y", "FP32", (64,))]
    return Planned(model, [TensorSpec("x", "FP32", (64,))], outputs, [], {"x": (64,)})


MODEL = places()


def opened(gpu: SimulatedGpu) -> TensorRtSession:
    return TensorRtSession(trt, {0: gpu}, MODEL.data, MODEL.plan, MODEL.manifest)


def test_sizes_that_grow_and_shrink_come_whole(gpu: SimulatedGpu) -> None:
    session = opened(gpu)
    for found in (1, 40, 0, 64, 3, 64):
        for number, slot in enumerate(session.slots):
            x = np.zeros(64, np.float32)
            x[number : number + found] = 1 + number
            slot.bind({"x": (64,)})["x"][:] = x
            assert slot.run() is None
            np.testing.assert_array_equal(slot.outputs()["at"], np.nonzero(x))
            np.testing.assert_array_equal(slot.outputs()["y"], -x)
    assert gpu.replays == 0, "what waits for values cannot be a graph"
    session.close()


@pytest.mark.parametrize("which", [1, 2])
def test_without_memory_for_an_output_its_own_batch_fails(gpu: SimulatedGpu, which: int) -> None:
    """Of the host, or of the device."""
    session = opened(gpu)
    slot = session.slots[0]
    gpu.faults.full_at = gpu.allocations + which
    slot.bind({"x": (64,)})["x"][:] = 1
    error = slot.run()
    assert isinstance(error, OutOfMemory)
    slot.bind({"x": (64,)})["x"][:] = 2
    assert slot.run() is None
    np.testing.assert_array_equal(slot.outputs()["at"], [np.arange(64)])
    session.close()
