"""Weights that are reshaped or turned in the graph are stored as they are read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.canonical import canonical
from engines.passes.stored_shapes import store_shapes
from engines.reference import Reference
from tests.support.onnx_models import FLOAT, build

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
W = np.arange(32, dtype=np.float32)
MOVES = {
    "Reshape": ([4, 8], ["shape"], {}), "Transpose": ([8, 4], [], {"perm": [1, 0]}),
    "Flatten": ([4, 2, 4], [], {"axis": 1}), "Squeeze": ([1, 4, 8], ["first"], {}),
}  # fmt: skip


def product(op: str) -> onnx.ModelProto:
    shape, further, attributes = MOVES[op]
    nodes = [
        helper.make_node(op, ["w", *further], ["v"], name="move", **attributes),
        helper.make_node("Gemm", ["x", "v"], ["y"], name="product", transB=1),
    ]
    stored = {"w": W.reshape(shape), "shape": np.array([4, 8], np.int64), "first": np.array([0], np.int64)}
    return build(nodes, {"x": (FLOAT, ["N", 8])}, {"y": (FLOAT, ["N", 4])}, stored, 21)


@pytest.mark.parametrize("op", MOVES)
def test_moved_weights_are_stored_as_they_are_read(op: str) -> None:
    model = product(op)
    made, _ = store_shapes(model)
    assert [node.op_type for node in made.graph.node] == ["Gemm"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert "w" not in stored
    assert stored["v"].shape == (4, 8)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(Reference(made)({"x": X})["y"], Reference(model)({"x": X})["y"])


def test_one_after_the_other_and_read_twice() -> None:
    nodes = [
        helper.make_node("Reshape", ["w", "shape"], ["a"], name="reshape"),
        helper.make_node("Transpose", ["a"], ["b"], name="turn"),
        helper.make_node("MatMul", ["x", "b"], ["m"], name="product"),
        helper.make_node("MatMul", ["m", "a"], ["y"], name="back"),
    ]
    stored = {"w": W, "shape": np.array([4, 8], np.int64)}
    model = build(nodes, {"x": (FLOAT, ["N", 8])}, {"y": (FLOAT, ["N", 8])}, stored, 21)
    made, _ = canonical(model)
    assert [node.op_type for node in made.graph.node] == ["MatMul", "MatMul"]
    assert {tensor.name for tensor in made.graph.initializer} == {"a", "b"}
    np.testing.assert_array_equal(Reference(made)({"x": X})["y"], Reference(model)({"x": X})["y"])


def test_what_is_computed_whole_or_an_answer_stays() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["m"], name="values"),
        helper.make_node("Reshape", ["whole", "shape"], ["n"], name="numbers"),
        helper.make_node("Reshape", ["w", "shape"], ["z"], name="answer"),
    ]
    stored = {"w": W, "whole": np.arange(32), "shape": np.array([4, 8], np.int64)}
    outputs = {"m": (FLOAT, [4, 8]), "n": (TensorProto.INT64, [4, 8]), "z": (FLOAT, [4, 8])}
    model = build(nodes, {"x": (FLOAT, [32])}, outputs, stored, 21)
    assert store_shapes(model)[0] is model
