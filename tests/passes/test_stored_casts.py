"""Casts of constants become constants, and what NNCF fails on with them can be quantized."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.passes.quantize import quantize
from engines.passes.stored_casts import store_casts
from engines.reference import Reference
from tests.support.onnx_models import FLOAT, build

ROWS = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


def shaped() -> onnx.ModelProto:
    """A product whose width is a stored number that is cast, twice, to what Reshape reads."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Cast", ["width"], ["whole"], name="cast", to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["long"], name="cast_again", to=TensorProto.INT64),
        helper.make_node("Concat", ["rows", "long"], ["shape"], name="shape", axis=0),
        helper.make_node("Reshape", ["h", "shape"], ["y"], name="reshape"),
    ]
    stored = {
        "w": np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32),
        "width": np.array([4.0], np.float32), "rows": np.array([-1], np.int64),
    }  # fmt: skip
    return build(nodes, {"x": (FLOAT, ["N", 8])}, {"y": (FLOAT, ["N", 4])}, stored, 21)


def test_a_cast_of_a_constant_is_a_constant() -> None:
    model = shaped()
    made = store_casts(model)
    assert [node.op_type for node in made.graph.node] == ["MatMul", "Concat", "Reshape"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert set(stored) == {"w", "rows", "long"}
    assert (stored["long"].dtype, stored["long"].tolist()) == (np.int64, [4])
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(Reference(made)({"x": ROWS})["y"], Reference(model)({"x": ROWS})["y"])


def test_casts_of_values_stay_and_nothing_is_copied_for_them() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], name="cast", to=TensorProto.DOUBLE)]
    model = build(nodes, {"x": (FLOAT, ["N"])}, {"y": (TensorProto.DOUBLE, ["N"])}, {}, 21)
    assert store_casts(model) is model


def test_a_cast_that_is_an_answer_stays() -> None:
    nodes = [
        helper.make_node("Cast", ["c"], ["answer"], name="cast", to=FLOAT),
        helper.make_node("Identity", ["x"], ["y"], name="same"),
    ]
    outputs = {"y": (FLOAT, ["N"]), "answer": (FLOAT, [1])}
    model = build(nodes, {"x": (FLOAT, ["N"])}, outputs, {"c": np.array([1], np.int64)}, 21)
    assert store_casts(model) is model


def test_a_model_with_such_casts_is_quantized() -> None:
    made = quantize(shaped(), [{"x": row[None]} for row in ROWS], len(ROWS))
    assert any(node.op_type == "QuantizeLinear" for node in made.graph.node)
