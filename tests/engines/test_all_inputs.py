"""Every input and output that the file declares is there, whatever the graph does with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.reference import Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT

node = helper.make_node
value = helper.make_tensor_value_info
X = np.array([[1, np.nan, -3, np.inf], [0, -0.0, 2, 5]], np.float32)
TYPES = np.array([[1, 2], [3, 4]], np.int64)


def model_of(*nodes: onnx.NodeProto, outputs: dict[str, int], types: tuple[int, str] | None = None) -> onnx.ModelProto:
    """`x` is [n, 4]; `types`, where given, is [n, any] of an element type."""
    inputs = [value("x", FLOAT, ["n", 4])]
    if types is not None:
        inputs.append(value("types", types[0], ["n", types[1]]))
    graph = helper.make_graph(nodes, "g", inputs, [value(name, kind, ["n", 4]) for name, kind in outputs.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def assert_same(built: Built, model: onnx.ModelProto, **inputs: np.ndarray) -> None:
    want, (got,) = Reference(model)(inputs), built.answer(inputs)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


UNREAD = {
    "read by no node": [node("Neg", ["x"], ["y"])],
    "read by a node whose output nobody reads": [node("Abs", ["types"], ["dead"]), node("Neg", ["x"], ["y"])],
}


@pytest.mark.parametrize("nodes", UNREAD.values(), ids=UNREAD)
def test_an_input_without_a_reader_is_taken(
    built: Callable[[onnx.ModelProto], Built], nodes: list[onnx.NodeProto]
) -> None:
    model = model_of(*nodes, outputs={"y": FLOAT}, types=(TensorProto.INT64, "t"))
    engine = built(model)
    assert engine.axes == {"x": 0, "types": 0, "y": 0}, "it does not keep the model from batching"
    assert_same(engine, model, x=X, types=TYPES)
    assert_same(engine, model, x=X[:1], types=TYPES[:1, :1])


NOTHING_DONE = {
    "Identity": ([node("Identity", ["x"], ["y"])], {"y": FLOAT}),
    "Dropout": ([node("Dropout", ["x"], ["y"])], {"y": FLOAT}),
    "Dropout, then Neg": ([node("Dropout", ["x"], ["d"]), node("Neg", ["d"], ["y"])], {"y": FLOAT}),
    "Dropout and its mask": ([node("Dropout", ["x"], ["y", "m"])], {"y": FLOAT, "m": TensorProto.BOOL}),
    "two outputs": ([node("Identity", ["x"], ["y"]), node("Dropout", ["x"], ["z"])], {"y": FLOAT, "z": FLOAT}),
    "an output of an output": ([node("Dropout", ["x"], ["y"]), node("Identity", ["y"], ["z"])],
                               {"z": FLOAT, "y": FLOAT}),
    "Sum of one": ([node("Sum", ["x"], ["y"])], {"y": FLOAT}),
    "Concat of one": ([node("Concat", ["x"], ["y"], axis=1)], {"y": FLOAT}),
    "the input is an output": ([node("Neg", ["x"], ["y"])], {"x": FLOAT, "y": FLOAT}),
    "the input is an output, beside a Dropout": ([node("Dropout", ["x"], ["y"])], {"x": FLOAT, "y": FLOAT}),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "outputs"), NOTHING_DONE.values(), ids=NOTHING_DONE)
def test_an_input_that_is_passed_on_keeps_its_name(
    built: Callable[[onnx.ModelProto], Built], nodes: list[onnx.NodeProto], outputs: dict[str, int]
) -> None:
    model = model_of(*nodes, outputs=outputs)
    assert_same(built(model), model, x=X[:1])
